"""A configuration as plain values, by keys that are those of its flags, and back, by types alone. Pure.

A key is a field. Where a dataclass has flags without a prefix, as the mesh of a run has, its fields are keys of the
mapping around it: what is --shard on the command line is `shard` at the top, and --optim.lr is `lr` in `optim`.
Of a union of dataclasses a mapping names its own, as `type`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

C = TypeVar("C")
NAMED: Final = "type"
"""The key by which a mapping says which dataclass of a union it is."""


class Key(NamedTuple):
    """A field of a configuration as its files know it."""

    name: str
    hint: Any
    inside: bool
    """Its fields are keys of the mapping around it."""


def keys_of(kind: type) -> Iterator[Key]:
    """The fields of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        said = hints[field.name]
        hint, *extras = get_args(said) if get_origin(said) is Annotated else (said,)
        yield Key(field.name, hint, is_struct(hint) and any(getattr(extra, "name", None) == "" for extra in extras))


def flat_keys(kind: type) -> dict[str, Any]:
    """The keys of a mapping that gives a `kind`, and their types."""
    known: dict[str, Any] = {}
    for key in keys_of(kind):
        known |= flat_keys(key.hint) if key.inside else {key.name: key.hint}
    return known


def paths_of(kind: type) -> dict[str, Any]:
    """All keys of all depths, with dots between, and their types."""
    return {
        path: inner
        for name, hint in flat_keys(kind).items()
        for path, inner in (
            (name, hint),
            *((f"{name}.{below}", one) for struct in structs_of(hint) for below, one in paths_of(struct).items()),
        )
    }


def is_struct(hint: Any) -> bool:
    """Whether values of this type are mappings with keys of their own."""
    return isinstance(hint, type) and is_dataclass(hint)


def to_plain(value: Any, hint: Any = None) -> Any:
    """`value` in words, numbers, lists and mappings.

    Args:
        value: a configuration, or what is in one.
        hint: the type of the field that it is of; its own if left out.
    """
    if is_dataclass(value) and not isinstance(value, type):
        plain: dict[str, Any] = {NAMED: type(value).__name__} if len(structs_of(hint)) > 1 else {}
        for key in keys_of(type(value)):
            inner = to_plain(getattr(value, key.name), key.hint)
            plain |= inner if key.inside else {key.name: inner}
        return plain
    if isinstance(value, Mapping):
        return {str(name): to_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def build(kind: type[C], given: Mapping[str, Any], base: C | None = None) -> C:
    """A `kind` with what is `given` of it, as `Reading.of_keys` gave that, in place of what `base` has.

    Raises:
        ValueError: if a field has no default, and is not given.
    """
    changes = {}
    for key in keys_of(kind):
        before = _before(kind, key.name, base)
        if key.inside:
            if mine := {name: given[name] for name in flat_keys(key.hint) if name in given}:
                changes[key.name] = build(key.hint, mine, None if before is MISSING else before)
        elif key.name in given:
            changes[key.name] = _made(key.hint, given[key.name], before)
    left = [key.name for key in keys_of(kind) if key.name not in changes]
    if missing := [name for name in left if _before(kind, name, base) is MISSING]:
        raise ValueError(f"{kind.__name__} needs {', '.join(missing)}: give what it is in a file of --config.")
    made: Any = kind(**changes) if base is None else replace(cast(Any, base), **changes)
    return made


def _before(kind: type, name: str, base: Any) -> Any:
    """What a field is where it is not given; MISSING if it has to be."""
    if base is not None:
        return getattr(base, name)
    field: Field[Any] = next(field for field in fields(kind) if field.name == name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def _made(hint: Any, given: Any, before: Any) -> Any:
    """The value of a field."""
    if isinstance(given, list | tuple):
        inner = next((get_args(one) for one in members_of(hint) if get_origin(one) in (list, tuple)), ())
        each = inner if len(inner) == len(given) and Ellipsis not in inner else [*inner[:1]] * len(given)
        return type(given)(_made(one, item, None) for one, item in zip(each, given, strict=True))
    structs = structs_of(hint)
    if not isinstance(given, Mapping) or not structs:
        return given
    kind = next((one for one in structs if one.__name__ == given.get(NAMED)), structs[0])
    inner = {name: value for name, value in given.items() if name != NAMED or len(structs) == 1}
    return build(kind, inner, before if type(before) is kind else None)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`: mappings are merged key by key, everything else is replaced. A mapping that
    names another dataclass replaces, too.

    >>> merge({"steps": 1, "optim": {"lr": 1, "eps": 2}}, {"optim": {"lr": 3}})
    {'steps': 1, 'optim': {'lr': 3, 'eps': 2}}
    """
    merged = dict(base)
    for name, value in over.items():
        before = merged.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping) and value.get(NAMED) in (before.get(NAMED), None):
            merged[name] = merge(before, value)
        else:
            merged[name] = value
    return merged


def members_of(hint: Any) -> tuple[Any, ...]:
    """The types that a value of this one may have."""
    if get_origin(hint) is Annotated:
        return members_of(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return tuple(member for one in get_args(hint) for member in members_of(one))
    return (hint,)


def structs_of(hint: Any) -> list[type]:
    """Those that are dataclasses."""
    return [one for one in members_of(hint) if is_struct(one)]
