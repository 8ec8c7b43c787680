"""Trees of tensors and plain values, the flat names of their leaves, and how two sets of tensors differ. Pure.

A tree is nested dicts. Its leaves are tensors (DTensors among them) and plain values: None, bool, int, float, str, or
lists of these. The leaf at `tree["state"]["model"]["norm.weight"]` is called `state.model.norm.weight`: the keys on the
way, joined with dots. A key is any non-empty string, dots included, so that parameters keep their names; two leaves
that would be called the same are refused, and so is everything else that would not come back exactly as it was.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

Plain: TypeAlias = bool | int | float | str | list["Plain"] | None

_SHOWN = 10


class Shaped(Protocol):
    """What is compared of a tensor: any tensor will do, one on the meta device, or a `TensorSpec`."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def dtype(self) -> torch.dtype: ...


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor without its values. Of a sharded tensor, the whole."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def flatten(tree: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Plain]]:
    """The tensors of `tree` and its plain values, each by flat name, in order.

    >>> flatten({"state": {"step": 3, "model": {}}})
    ({}, {'state.step': 3})

    Raises:
        ValueError: naming every key that is not a non-empty string, every leaf of another type, and every name that
            two leaves would share.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Plain] = {}
    problems = []
    for keys, leaf in _leaves(tree):
        name = ".".join(str(key) for key in keys)
        problems += [f"{name!r}: {why}" for key in keys if (why := _key_problem(key))]
        if name in tensors or name in plain:
            problems.append(f"{name!r}: two leaves have this name; dots in keys made them the same.")
        if isinstance(leaf, Tensor):
            tensors[name] = leaf
        else:
            plain[name] = leaf
            problems += [f"{name!r}: {why}" for why in [_plain_problem(leaf)] if why]
    if problems:
        raise ValueError("the tree has leaves that could not come back as they are:\n  " + "\n  ".join(problems))
    return tensors, plain


def without_tensors(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` less its tensors, in the same nesting."""
    return {
        key: without_tensors(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if not isinstance(value, Tensor)
    }


def with_plain(tree: Mapping[str, Any], plain: Mapping[str, Plain], above: str = "") -> dict[str, Any]:
    """`tree` with the leaves that `plain` has by flat name, `above` before it; the rest of it is the same objects."""
    filled: dict[str, Any] = {}
    for key, value in tree.items():
        name = above + key
        is_branch = isinstance(value, Mapping)
        filled[key] = with_plain(value, plain, f"{name}.") if is_branch else plain.get(name, value)
    return filled


def mismatches(wanted: Mapping[str, Shaped], found: Mapping[str, Shaped]) -> list[str]:
    """Why the tensors `found` in a checkpoint cannot fill exactly those `wanted`; nothing if they can.

    One line for each kind of problem, with the number of tensors and the first ten names. If most names disagree, the
    first line says that this is probably a checkpoint of another model.

    Args:
        wanted: the tensors of this run, by name; only shape and dtype are read, so a meta tensor will do.
        found: those of the checkpoint, `stored(path)` for example.
    """
    shared = [name for name in wanted if name in found]
    shapes = {name: (tuple(found[name].shape), tuple(wanted[name].shape)) for name in shared}
    dtypes = {name: (found[name].dtype, wanted[name].dtype) for name in shared}
    reshaped = [f"{name} {there} is {here} here" for name, (there, here) in shapes.items() if there != here]
    recast = [f"{name} {there} is {here} here" for name, (there, here) in dtypes.items() if there != here]
    lines = different_names("tensors", wanted, found)
    lines += named("with another shape", reshaped) + named("with another dtype, which would be cast", recast)
    total = len(wanted) + len(found) - len(shared)
    apart = total - len(shared) + len(reshaped)
    if apart > total / 2:
        lines.insert(0, f"this looks like a checkpoint of another model: {apart} of {total} tensors disagree")
    return lines


def as_cast(
    found: Mapping[str, TensorSpec], wanted: Mapping[str, Shaped], below: Sequence[str]
) -> dict[str, TensorSpec]:
    """`found`, of which floats have the dtype that is `wanted` where their names are `below` one of these. Pure.

    >>> was = {"moments.a": TensorSpec((2,), torch.float32)}
    >>> as_cast(was, {"moments.a": torch.zeros(2).bfloat16()}, ["moments"])["moments.a"].dtype
    torch.bfloat16
    """
    starts = tuple(f"{name}." for name in below)
    cast = {
        name: TensorSpec(spec.shape, wanted[name].dtype)
        for name, spec in found.items()
        if name.startswith(starts)
        and name in wanted
        and spec.dtype.is_floating_point
        and wanted[name].dtype.is_floating_point
    }
    return {**found, **cast}


def different_names(what: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The names on one side only: a line for those missing, a line for those unexpected."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    return named(f"{what} missing in the checkpoint", missing) + named(f"{what} unexpected in it", unexpected)


def named(label: str, names: Sequence[str]) -> list[str]:
    """One line with the label, the count and the first names; no line for no names."""
    more = ", ..." if len(names) > _SHOWN else ""
    return [f"{label} ({len(names)}): {', '.join(names[:_SHOWN])}{more}"] if names else []


def _leaves(tree: Mapping[Any, Any], above: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _key_problem(key: Any) -> str | None:
    if not isinstance(key, str):
        return f"the key {key!r} is of type {type(key).__name__}; use a string."
    return None if key else "a key is empty; give it a name."


def _plain_problem(value: Any) -> str | None:
    if type(value) is list:
        return next((why for item in value if (why := _plain_problem(item))), None)
    # Exactly these types: a subclass (numpy.float64 is a float) would come back as its base.
    if value is None or type(value) in (bool, int, float, str):
        return None
    return f"a {type(value).__name__} is not stored; use a tensor, None, bool, int, float, str or a list of these."
