"""The door of the decoder, where whole rows come in and this rank's slice goes on.

Dimensions: B rows, S tokens a row, s = ceil(S / count) tokens of it on each of `count` ranks.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

WHOLE = "whole_position_ids"
"""The fact that tells attention of the row that its slice is of: the positions (B, S) of all its tokens."""

_CUT = ("input_ids", "inputs_embeds", "token_type_ids", "mm_token_type_ids", "per_layer_inputs")
"""Inputs of a decoder that have a value for each token, (B, S, ...)."""


def cut_row(x: Tensor, dim: int, index: int, count: int, *, fill: int | None = None) -> Tensor:
    """The `index`-th of `count` slices of `x` along `dim`, ceil(S / count) long. Pure.

    What is missing at the end is filled with `fill`; with the last token if that is None, whose values no layer can
    trip over.
    """
    size = x.shape[dim]
    part = -(-size // count)
    if size % count == 0:
        return x.narrow(dim, index * part, part)
    place = torch.arange(index * part, (index + 1) * part, device=x.device)
    cut = x.index_select(dim, place.clamp(max=size - 1))
    if fill is None:
        return cut
    beyond = (place >= size).view(-1, *[1] * (x.ndim - 1 - dim % x.ndim))
    return cut.masked_fill(beyond, fill)


def cut_inputs(
    group: dist.ProcessGroup, names: tuple[str, ...], decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a decoder, cut to this rank's slice; of the whole row attention is told the positions."""
    index, count = dist.get_rank(group), dist.get_world_size(group)
    inputs = {**dict(zip(names, args, strict=False)), **kwargs}
    entering = inputs.get("inputs_embeds")
    entering = inputs.get("input_ids") if entering is None else entering
    if entering is None:
        raise ValueError(f"{type(decoder).__name__} was called without input_ids and without inputs_embeds.")
    B, S = entering.shape[:2]
    positions = inputs.get("position_ids")
    if positions is None:
        positions = torch.arange(S, device=entering.device).expand(B, S)
    _refuse_contradictions(type(decoder).__name__, inputs, positions, B, S)
    mask_BS, features = inputs.get("visual_pos_masks"), inputs.get("deepstack_visual_embeds")
    if mask_BS is not None:
        # One feature for each True, in the order of the flattened mask.
        which_BS = (mask_BS.flatten().cumsum(0) - 1).view(B, S)
        mask_Bs = cut_row(mask_BS, 1, index, count, fill=False)
        which = cut_row(which_BS, 1, index, count)[mask_Bs]
        inputs["visual_pos_masks"] = mask_Bs
        inputs["deepstack_visual_embeds"] = None if features is None else [feature[which] for feature in features]
    for name in _CUT:
        if inputs.get(name) is not None:
            inputs[name] = cut_row(inputs[name], 1, index, count)
    # Beyond the row every token is a document of its own, which reaches no other.
    inputs["position_ids"] = cut_row(positions, -1, index, count, fill=0)
    inputs["attention_mask"] = None
    # Of (4, B, S) positions the first are those of the text; (3, B, S) tell nothing of documents.
    text = positions if positions.ndim == 2 else positions[0] if len(positions) == 4 else None
    inputs[WHOLE] = torch.arange(S, device=entering.device).expand(B, S) if text is None else text.expand(B, S)
    return (), inputs


def _refuse_contradictions(name: str, inputs: Mapping[str, Any], positions: Tensor, B: int, S: int) -> None:
    """Raise one `ValueError` with every reason why these inputs of a decoder cannot be cut."""
    problems = []
    if positions.shape[-1] != S:
        problems.append(
            f"position_ids are of {positions.shape[-1]} tokens, the row of {S}: pass whole rows, which are cut here."
        )
    mask = inputs.get("attention_mask")
    if isinstance(mask, Mapping) and all(each is None for each in mask.values()):
        mask = None  # One for each kind of layer, and none of them is made.
    if mask is not None and not isinstance(mask, Tensor):
        problems.append(
            f"attention_mask is a {type(mask).__name__}: say where documents end by cu_seqlens, and pass no mask."
        )
    elif mask is not None and mask.shape != (B, S):
        problems.append(f"attention_mask is {list(mask.shape)}, the rows are {[B, S]}: pass no mask.")
    elif mask is not None and not bool(mask.all()):
        problems.append("attention_mask has zeros: say where documents end by cu_seqlens, and pass no mask.")
    if inputs.get("past_key_values") is not None:
        problems.append("past_key_values cannot be cut: sequence parallelism trains and reads no cache.")
    longest = inputs.get("max_seqlen")
    if longest is not None and int(longest) > S:
        problems.append(f"max_seqlen={longest} is longer than the row of {S} tokens.")
    bounds = inputs.get("cu_seqlens")
    if bounds is not None and bounds.is_cuda:
        # Loud without making the host wait; torch has no public name for it.
        torch._assert_async(bounds[-1] == B * S, f"cu_seqlens must end at {B * S}, {B} rows of {S} tokens")
    elif bounds is not None and int(bounds[-1]) != B * S:
        problems.append(f"cu_seqlens ends at {int(bounds[-1])}, but {B} rows of {S} tokens end at {B * S}.")
    known = (*_CUT, *_OF_ROWS, "visual_pos_masks")
    problems += [
        f"{key} is {list(inputs[key].shape)}, the rows are {[B, S]}: it is of whole rows."
        for key in _OF_ROWS
        if inputs.get(key) is not None and inputs[key].shape != (B, S)
    ]
    problems += [
        f"{key} has {S} tokens, and how it is cut is not known here."
        for key, value in inputs.items()
        if key not in known
        and not key.startswith(_MEDIA)
        and any(isinstance(x, Tensor) and x.ndim > 1 and x.shape[1] == S and key not in _KEPT for x in _flat(value))
    ]
    if problems:
        raise ValueError(f"{name} cannot be cut along the row:\n" + "\n".join(f"  - {p}" for p in problems))


_MEDIA = ("pixel_", "image_", "video_", "input_features", "feature_", "second_per_grid")
"""How the names of inputs begin that have a value for each medium, or patch, or frame."""

_OF_ROWS = ("group_ids",)
"""Inputs (B, S) of whole rows that attention reads, which sees whole rows."""

_KEPT = ("position_ids", "attention_mask", "past_key_values", "deepstack_visual_embeds")
"""Inputs with tokens that are looked at one by one."""


def _flat(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def encode_whole(
    group: dist.ProcessGroup,
    encode: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    position_ids: Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, ...]:
    """A position encoding of this rank's tokens that depends on the whole row: made for all of it, then cut."""
    index, count = dist.get_rank(group), dist.get_world_size(group)
    flat = position_ids.movedim(-1, 0).contiguous()
    whole = flat.new_empty(count * len(flat), *flat.shape[1:])
    dist.all_gather_into_tensor(whole, flat, group=group)
    encoded = encode(x, whole.movedim(0, -1), *args, **kwargs)
    return tuple(cut_row(part, -2, index, count) for part in encoded)
