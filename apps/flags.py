"""The command line of an app: a flag for each field of its configuration, told by the docstring of the field, and the
words of packages in terms of flags."""

import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from shlex import quote
from types import MappingProxyType
from typing import Any, Final, TypeVar, get_type_hints

import tyro
from docstring_parser import parse_from_object
from elsewhere import name_flags
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

C = TypeVar("C")
NOTHING: Final = MappingProxyType({})


Told = Mapping[type, Mapping[str, str | None]]
"""Of fields of a dataclass, what is said instead of their docstrings; None hides the flag."""


def parse(config_type: type[C], manual: str | None, *, told: Told = NOTHING, args: Sequence[str] | None = None) -> C:
    """What the command line asks for. Effect: exits if it asks for help, or for what there is not.

    Args:
        config_type: of the app.
        manual: what its help begins with.
        told: of flags, otherwise than by their docstrings.
        args: instead of those of this process.
    """
    registry = ConstructorRegistry()
    registry.struct_rule(partial(flags_of, told=told))
    try:
        return tyro.cli(config_type, description=manual, args=args, registry=registry)
    except SystemExit as leaving:
        if leaving.code:
            names = name_flags(sys.argv[1:] if args is None else args, config_type)
            for line in (*names, *example_of(config_type, manual)):
                print(line, file=sys.stderr)
        raise
    except BrokenPipeError:  # Whoever read the help has seen enough, as `head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def flags_of(info: StructTypeInfo, *, told: Told) -> StructConstructorSpec | None:
    """The fields of a dataclass as flags. Their docstrings are running text: the lines of the source, which tyro keeps,
    are not those of the terminal."""
    if not is_dataclass(info.type) or getattr(info.type, "__parameters__", ()):
        return None
    hints, words = get_type_hints(info.type, include_extras=True), {**docs_of(info.type), **told.get(info.type, {})}
    flags = []
    for field in fields(info.type):
        said = words.get(field.name, "")
        hint = tyro.conf.Suppress[hints[field.name]] if said is None else hints[field.name]
        flags.append(StructFieldSpec(field.name, hint, _default(field, info), said))
    return StructConstructorSpec(info.type, tuple(flags))


def example_of(config_type: Any, manual: str | None) -> list[str]:
    """A command of `manual`, for an app that does nothing without being told what with; else nothing. Pure."""
    asks = not is_dataclass(config_type) or any(
        field.default is MISSING and field.default_factory is MISSING
        for field in fields(config_type)
        if not is_dataclass(getattr(field.type, "__origin__", field.type))
    )
    commands = [line.strip() for line in (manual or "").splitlines() if line.strip().startswith("uv run ")]
    return [f"As in: {re.split(r' {3,}', commands[0])[0]}"] if asks and commands else []


def docs_of(kind: type) -> Mapping[str, str]:
    """What the docstrings of a dataclass say of its fields, each in one line. Effect: reads its source."""
    found = [param for base in reversed(kind.__mro__) if is_dataclass(base) for param in parse_from_object(base).params]
    return {param.arg_name: " ".join(param.description.split()) for param in found if param.description}


_SAID: Final = re.compile(
    r"(?<![\w./-])((?P<name>field|max_bad|workers|tokenizer|most_pixels|most_frames|most_seconds)="
    r"('(?P<quoted>[^']*)'|(?P<value>\w*))|packing\.long)"
)
"""How packages name what flags of an app give them."""
_NAMED: Final = {
    "most_pixels": "media.most_pixels",
    "most_frames": "media.max_frames",
    "most_seconds": "media.max_seconds",
}
"""What flags are called otherwise."""


def by_flags(told: str) -> str:
    """`told` of a package, with what it was given named as flags are. Pure.

    >>> by_flags("there is 'txt'. Did you mean field='txt'?"), by_flags("Choose one with `field=`.")
    ("there is 'txt'. Did you mean --field txt?", 'Choose one with `--field`.')
    >>> by_flags("of max_bad=6: a document is too long: let packing.long cut such ones")
    'of --max-bad 6: a document is too long: let --packing.long cut such ones'
    """
    return _SAID.sub(_as_flag, told)


def as_word(value: Any) -> str:
    """A value as it is given to a flag. Pure."""
    return "left out" if value is None else " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _as_flag(said: re.Match[str]) -> str:
    if said["name"] is None:
        return f"--{said[0]}"
    value = said["value"] if said["quoted"] is None else quote(said["quoted"])
    name = _NAMED.get(said["name"], said["name"])
    return f"--{name.replace('_', '-')} {value}".rstrip()


def _default(field: Any, info: StructTypeInfo) -> Any:
    """What a field is where nothing is given for it."""
    if isinstance(info.default, info.type):
        return getattr(info.default, field.name)
    if field.default is not MISSING:
        return field.default
    return tyro.MISSING if field.default_factory is MISSING else field.default_factory()
