"""Towers that are told by the host what follows from the sizes of media, which it knows before a device has them.

A tower of Qwen2-VL or Qwen2.5-VL reads the sizes back from its device, several times a call: the host waits for all
that the device was asked for before, and the device then for the host. transformers lets who calls give what follows
from sizes (`accepts_precomputed_kwargs`). So it is computed where they are numbers, and sent.

Dimensions: M media, P patches of all of them.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

_KNOWN: Final = ("qwen2_vl", "qwen2_5_vl")
"""Types whose towers need no more of the sizes than what is given here."""


def encode_sized(
    owner: nn.Module, kind: str, encode: Callable[..., Any], *args: Any, sizes: Sequence[Sequence[int]] = (), **how: Any
) -> Any:
    """What `encode` returns, which is told what follows from the sizes if it is of a type that takes that.

    Args:
        owner: the module that has media encoded by `encode`.
        kind: of media.
        encode: takes arrays of media, the patches (P, ...) first and sizes (M, 3) next or by name.
        sizes: of each medium, frames, height and width in patches; none leaves it to the tower.
    """
    towers = [module for module in owner.children() if hasattr(module, "spatial_merge_size")]
    model_type = getattr(getattr(owner, "config", None), "model_type", "")
    if not sizes or len(towers) != 1 or not args or model_type not in _KNOWN:
        return encode(*args, **how)
    grids_M3, name = torch.tensor(sizes), f"{kind}_grid_thw"
    told = {f"{kind}_{fact}": _on(x, args[0].device) for fact, x in tell_sizes(towers[0], grids_M3).items()}
    if name in how:
        return encode(*args, **{**how, name: grids_M3}, **told)
    return encode(args[0], grids_M3, *args[2:], **how, **told)


def tell_sizes(tower: Any, grids_M3: Tensor) -> dict[str, Tensor]:
    """What such a tower computes of sizes on the host, by its names for it. Pure."""
    told = {
        "position_ids": get_vision_position_ids(grids_M3, tower.spatial_merge_size),
        "cu_seqlens": get_vision_cu_seqlens(grids_M3),
    }
    if hasattr(tower, "window_size"):
        how = {name: getattr(tower, name) for name in ("spatial_merge_size", "window_size", "patch_size")}
        told["window_index"], told["cu_window_seqlens"] = get_vision_window_index(grids_M3, **how)
    return told


def _on(x: Tensor, device: torch.device) -> Tensor:
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
