"""Rotary position encodings whose frequencies depend on the length of the sequence, exact for packed rows.

"dynamic" (NTK scaling by length) and "longrope" (Ding et al., 2024, arXiv:2402.13753) take the length from the largest
position they are given, and dynamic remembers the longest it saw. In a packed row the longest document would so change
all others, and one batch the next. Here every document gets what a fresh model would give it alone.

Dimensions: B rows, S tokens a row, P planes of positions (3 where images have height and width, else absent).
"""

from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

M = TypeVar("M", bound=PreTrainedModel)


def length_dependent_rotaries(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the modules whose position encoding depends on the length of a document. Pure."""
    return tuple(name for name, module in model.named_modules() if any(map(_depends_on_length, _rope_types(module))))


def exact_rope(model: M) -> M:
    """The same model, whose position encodings take the length of each document from itself alone. Donates `model`.

    Documents begin where all positions are 0, and at the beginning of a row. A module is called once for all documents
    up to the length it was trained on, and once for each longer length among the others ("longrope": for all others).
    """
    for name in length_dependent_rotaries(model):
        module = model.get_submodule(name)
        module.forward = MethodType(_by_document(type(module).forward), module)
    return model


def _by_document(encode: Callable[..., Any]) -> Callable[..., Any]:
    def by_document(self: nn.Module, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        kind = {} if layer_type is None else {"layer_type": layer_type}
        rope_type = _rope_type(self, layer_type)
        if not _depends_on_length(rope_type):
            return encode(self, x, position_ids, **kind)
        length_BS = _lengths(position_ids)
        limit = _limit(self, layer_type)
        # One length stands for all that are encoded alike.
        alike_BS = length_BS.where(length_BS > limit, 0)
        alike_BS = alike_BS.clamp(max=limit + 1) if rope_type == "longrope" else alike_BS
        # A short document makes a module forget the long ones; after it, lengths that grow are each taken as they are.
        encode(self, x, torch.zeros_like(position_ids[..., :1]), **kind)
        lengths = alike_BS.unique().tolist()
        encoded = encode(self, x, position_ids.where(alike_BS == lengths[0], 0), **kind)
        for length in lengths[1:]:
            chosen_BS = alike_BS == length
            encoded = _choose(chosen_BS, encode(self, x, position_ids.where(chosen_BS, 0), **kind), encoded)
        return encoded

    return by_document


def _lengths(position_PBS: Tensor) -> Tensor:
    """(B, S): the length of the document of each token, which is one more than its largest position."""
    planes_PBS = position_PBS.reshape(-1, *position_PBS.shape[-2:])
    starts_BS = (planes_PBS == 0).all(dim=0)
    starts_BS[:, 0] = True
    document_BS = starts_BS.flatten().cumsum(0).view_as(starts_BS) - 1
    largest_BS = planes_PBS.amax(dim=0)
    largest = largest_BS.new_zeros(starts_BS.numel()).scatter_reduce(
        0, document_BS.flatten(), largest_BS.flatten(), "amax"
    )
    return largest[document_BS] + 1


def _choose(chosen_BS: Tensor, these: Any, those: Any) -> Any:
    """`these` where chosen, else `those`: tensors (..., B, S, D), or tuples of such."""
    if isinstance(these, Tensor):
        return torch.where(chosen_BS[..., None], these, those)
    return tuple(_choose(chosen_BS, a, b) for a, b in zip(these, those, strict=True))


def _limit(module: nn.Module, layer_type: str | None) -> int:
    """The longest document that has the frequencies of training."""
    if _rope_type(module, layer_type) != "longrope":
        # transformers measures "dynamic" against this attribute, whatever the configuration calls original.
        return int(module.original_max_seq_len)  # pyright: ignore[reportArgumentType]
    rope: Any = module.config.rope_parameters  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    return int((rope if layer_type is None else rope[layer_type])["original_max_position_embeddings"])


def _rope_types(module: nn.Module) -> tuple[str, ...]:
    """What `module` says of itself: one type, or one for each kind of layer that it serves; none if it is no rotary."""
    types = getattr(module, "rope_type", ())
    return (types,) if isinstance(types, str) else tuple(types.values()) if isinstance(types, dict) else ()


def _rope_type(module: nn.Module, layer_type: str | None) -> str:
    types: Any = module.rope_type
    return types if layer_type is None else types[layer_type]


def _depends_on_length(rope_type: str) -> bool:
    return "dynamic" in rope_type or rope_type == "longrope"
