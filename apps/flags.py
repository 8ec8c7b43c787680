"""The command line of an app: a flag for each field of its configuration, told by the docstring of the field."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import tyro
from docstring_parser import parse_from_object
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

C = TypeVar("C")


def parse(config_type: type[C], manual: str | None, *, args: Sequence[str] | None = None) -> C:
    """What the command line asks for. Effect: exits if it asks for help, or for what there is not.

    Args:
        config_type: of the app.
        manual: what its help begins with.
        args: instead of those of this process.
    """
    registry = ConstructorRegistry()
    registry.struct_rule(flags_of)
    return tyro.cli(config_type, description=manual, args=args, registry=registry)


def flags_of(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The fields of a dataclass as flags. Their docstrings are running text: the lines of the source, which tyro keeps,
    are not those of the terminal."""
    if not is_dataclass(info.type) or getattr(info.type, "__parameters__", ()):
        return None
    hints, told = get_type_hints(info.type, include_extras=True), docs_of(info.type)
    flags = [
        StructFieldSpec(field.name, hints[field.name], _default(field, info), told.get(field.name))
        for field in fields(info.type)
    ]
    return StructConstructorSpec(info.type, tuple(flags))


def docs_of(kind: type) -> Mapping[str, str]:
    """What the docstrings of a dataclass say of its fields, each in one line. Effect: reads its source."""
    found = [param for base in reversed(kind.__mro__) if is_dataclass(base) for param in parse_from_object(base).params]
    return {param.arg_name: " ".join(param.description.split()) for param in found if param.description}


def _default(field: Any, info: StructTypeInfo) -> Any:
    """What a field is where nothing is given for it."""
    if isinstance(info.default, info.type):
        return getattr(info.default, field.name)
    if field.default is not MISSING:
        return field.default
    return tyro.MISSING if field.default_factory is MISSING else field.default_factory()
