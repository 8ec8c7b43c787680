"""How tensors of the hub lie in parameters. Pure: nothing is read, and nothing of a model is changed.

Hub checkpoints name the experts of a layer one by one, parameters hold them all in one tensor, and transformers knows
how to turn the one into the other. Here its own conversion is run once, backwards, on tensors without memory that are
all views of one line of numbers: where a view begins and how far it steps tells which part of which parameter a tensor
of the hub is. A `Piece` says so in numbers. Written out, it is a view of the parameter; read in, it is a box, of which
a rank that holds a part of the parameter reads the part that they share.

Private names used here, with the reason: `revert_weight_conversion`, `WeightRenaming` and `Transpose` of transformers'
loader are the only place where the names and layouts of the hub are known. `tests/test_layout.py` fails if one moves.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Transpose, WeightConverter, WeightRenaming, revert_weight_conversion

from omni_models.classes import plain_view

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of the hub, as a view of a contiguous parameter: numbers count elements."""

    param: str
    """Name of the parameter (or buffer) that it is a part of."""
    name: str
    """Its name on the hub."""
    shape: Shape
    strides: tuple[int, ...]
    offset: int

    def view(self, param: Tensor) -> Tensor:
        """This part of `param`, which is whole and contiguous; shares its memory."""
        return param.as_strided(self.shape, self.strides, param.storage_offset() + self.offset)


@dataclass(frozen=True, slots=True)
class Overlap:
    """What a rank's part of a parameter shares with a piece."""

    source: tuple[slice, ...]
    """Of the tensor of the hub."""
    target: tuple[slice | int, ...]
    """Of the rank's part of the parameter."""
    order: tuple[int, ...]
    """The dims of the target, in the order of those of the source."""


def find_pieces(
    model: PreTrainedModel, shapes: Mapping[str, Shape], *, stored: Mapping[str, Shape] = MappingProxyType({})
) -> dict[str, tuple[Piece, ...]]:
    """The tensors of the hub that make up each tensor of `model`, by name.

    Args:
        model: of any kind of transformers, on any device, sharded or not.
        shapes: of its tensors, whole, by name.
        stored: shapes of the tensors of a directory, by the names that `canonical` gives: where a parameter lies there
            whole under its own name, it is one piece, and where a tensor lies transposed, as its shape says and
            transformers knows, so does its piece.

    Raises:
        ValueError: if transformers' conversion computes something that is no view of the parameters.
    """
    starts, total = {}, 0
    for name, shape in shapes.items():
        starts[name] = total
        total += prod(shape)
    line = torch.empty(total, device="meta")
    tensors = {name: line[at : at + prod(shapes[name])].view(shapes[name]) for name, at in starts.items()}
    with _InPlace():
        found = revert_weight_conversion(plain_view(model), tensors)
    order, begins = list(starts), list(starts.values())
    pieces: dict[str, list[Piece]] = {name: [] for name in shapes}
    strange = []
    for name, view in found.items():
        param = order[bisect_right(begins, view.storage_offset()) - 1]
        piece = Piece(param, name, tuple(view.shape), view.stride(), view.storage_offset() - starts[param])
        if view.untyped_storage().nbytes() != line.untyped_storage().nbytes() or _dims(piece, shapes[param]) is None:
            strange.append(name)
        pieces[param].append(piece)
    covered = {name: sum(prod(piece.shape) for piece in parts) for name, parts in pieces.items()}
    strange += [name for name, count in covered.items() if count != prod(shapes[name]) and not strange]
    if strange:
        raise ValueError(
            f"checkpoints of {model.config.model_type} hold tensors that are computed from several of its own, which "
            f"is not built yet: {', '.join(strange[:8])}{', ...' if len(strange) > 8 else ''}."
        )
    name_of, transposed = canonical(model), _transposed(model)

    def as_stored(name: str, parts: list[Piece]) -> tuple[Piece, ...]:
        if name in stored and not any(name_of(piece.name) in stored for piece in parts):
            return (Piece(name, name, shapes[name], _strides(shapes[name]), 0),)
        return tuple(
            _swap(piece) if _is_swapped(piece, stored.get(name_of(piece.name)), transposed) else piece
            for piece in parts
        )

    return {name: as_stored(name, parts) for name, parts in pieces.items()}


def canonical(model: PreTrainedModel) -> Callable[[str], str]:
    """From any name that transformers accepts for a tensor of the hub to one name for it."""
    renames = [rule for rule in get_model_conversion_mapping(plain_view(model)) if isinstance(rule, WeightRenaming)]

    def name_of(name: str) -> str:
        for rule in renames:
            name, _ = rule.rename_source_key(name)
        return name

    return name_of


def find_overlap(piece: Piece, shape: Shape, part: Sequence[slice]) -> Overlap | None:
    """What `part` of a parameter of this `shape` shares with `piece`; None if nothing.

    >>> piece = Piece("up", "up.1", shape=(2, 3), strides=(3, 1), offset=6)  # the second of two matrices
    >>> find_overlap(piece, (2, 2, 3), (slice(1, 2), slice(1, 2), slice(0, 3)))
    Overlap(source=(slice(1, 2, None), slice(0, 3, None)), target=(0, slice(0, 1, 1), slice(0, 3, 1)), order=(0, 1))
    """
    dims = _dims(piece, shape)
    assert dims is not None, piece
    source = [slice(0, size) for size in piece.shape]
    target: list[slice | int] = []
    for dim, (start, here) in enumerate(zip(_coordinates(piece.offset, shape), part, strict=True)):
        if dim not in dims:
            if not here.start <= start < here.stop:
                return None
            target.append(start - here.start)
            continue
        along = dims.index(dim)
        step = piece.strides[along] // _strides(shape)[dim]
        first = max(0, -(-(here.start - start) // step))
        last = min(piece.shape[along], -(-(here.stop - start) // step))
        if first >= last:
            return None
        source[along] = slice(first, last)
        begin = start + first * step - here.start
        target.append(slice(begin, begin + (last - first - 1) * step + 1, step))
    kept = sorted(dim for dim in dims if dim is not None)
    return Overlap(tuple(source), tuple(target), tuple(kept.index(dim) for dim in dims if dim is not None))


def _dims(piece: Piece, shape: Shape) -> list[int | None] | None:
    """The dim of the parameter that each dim of the piece runs along, None for one of size 1; None if there is none."""
    strides, starts = _strides(shape), _coordinates(piece.offset, shape)
    dims: list[int | None] = []
    for size, stride in zip(piece.shape, piece.strides, strict=True):
        if size == 1:
            dims.append(None)
            continue
        fits = [dim for dim, unit in enumerate(strides) if shape[dim] > 1 and stride and stride % unit == 0]
        if not fits:
            return None
        dim = fits[0]
        if dim in dims or starts[dim] + (size - 1) * (stride // strides[dim]) >= shape[dim]:
            return None
        dims.append(dim)
    return dims


def _strides(shape: Shape) -> tuple[int, ...]:
    return tuple(prod(shape[dim + 1 :]) for dim in range(len(shape)))


def _coordinates(offset: int, shape: Shape) -> tuple[int, ...]:
    return tuple(offset // stride % size for stride, size in zip(_strides(shape), shape, strict=True))


def _swap(piece: Piece) -> Piece:
    """The same numbers, with the last two dims the other way round."""
    return replace(
        piece,
        shape=(*piece.shape[:-2], piece.shape[-1], piece.shape[-2]),
        strides=(*piece.strides[:-2], piece.strides[-1], piece.strides[-2]),
    )


def _is_swapped(piece: Piece, stored: Shape | None, transposed: Callable[[str], bool]) -> bool:
    differs = stored is not None and stored != piece.shape and len(piece.shape) > 1
    return differs and stored == _swap(piece).shape and transposed(piece.name)


def _transposed(model: PreTrainedModel) -> Callable[[str], bool]:
    """Whether transformers takes a tensor of this name for a transposed one where its shape says so."""
    rules = [
        rule
        for rule in get_model_conversion_mapping(plain_view(model))
        if isinstance(rule, WeightConverter) and any(isinstance(op, Transpose) for op in rule.operations)
    ]
    return lambda name: any(rule.rename_source_key(name)[1] is not None for rule in rules)


class _InPlace(TorchFunctionMode):
    """While open, `contiguous` gives back what it is called on, so that the strides of a view stay to be seen."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.contiguous else func(*args, **(kwargs or {}))
