"""Towers that are told by the host what follows from the sizes of media, which it knows before a device has them.

A tower of Qwen2-VL or Qwen2.5-VL reads the sizes back from its device, several times a call: the host waits for all
that the device was asked for before, and the device then for the host. transformers lets who calls such a tower give
what follows from sizes. So it is computed where they are numbers, and sent.

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
    """What `encode` returns, whose tower is told what follows from the sizes if it is of a type that takes that.

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
    told = {fact: _on(x, args[0].device) for fact, x in tell_sizes(towers[0], grids_M3).items()}
    # By a hook, after those that take from the tower what is said of rows: some of it has the same names.
    telling = towers[0].register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | told), with_kwargs=True)
    try:
        if name in how:
            return encode(*args, **{**how, name: grids_M3})
        return encode(args[0], grids_M3, *args[2:], **how)
    finally:
        telling.remove()


def tell_sizes(tower: Any, grids_M3: Tensor) -> dict[str, Tensor | int]:
    """What such a tower computes of sizes on the host, by its names for it. Pure."""
    bounds = get_vision_cu_seqlens(grids_M3)
    told: dict[str, Tensor | int] = {
        "position_ids": get_vision_position_ids(grids_M3, tower.spatial_merge_size),
        "cu_seqlens": bounds,
        "max_seqlen": int(bounds.diff().max()),
    }
    if hasattr(tower, "window_size"):
        how = {name: getattr(tower, name) for name in ("spatial_merge_size", "window_size", "patch_size")}
        told["window_index"], bounds = get_vision_window_index(grids_M3, **how)
        told |= {"cu_window_seqlens": bounds, "max_window_seqlen": int(bounds.diff().max())}
    return told


def _on(x: Tensor | int, device: torch.device) -> Tensor | int:
    if isinstance(x, int):
        return x
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
