"""Settings from files and flags: `--config base.yaml changes.yaml --optim.lr 5e-7`, and back to a file.

Files are laid over each other in the order in which they are named, and each over those that its own key `base` names,
relative to it; flags come last. Mappings are merged, everything else is replaced. Paths of data, models and the run are
in a file what they are on the command line: relative to where the app is started.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import tyro
from fields import build, merge, to_plain
from flags import NOTHING, Told, parse
from reading import Reading
from redact import plain_values
from refusal import refuse
from strict_yaml import Items, Keys, Tree, Word, read_yaml, tell_yaml
from versions import VERSION, migrate

C = TypeVar("C")
BASE: Final = "base"
"""The key of a file that names those it changes."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where settings come from, and go to."""

    config: tuple[Path, ...] = ()
    """YAML files of settings, whose keys are flags: --optim.lr is lr in the mapping optim. Of several, later ones win,
    and flags win over all."""
    print_config: bool = False
    """Print all settings as YAML, which --config reads, and leave."""


def ask(config_type: type[C], manual: str | None, *, told: Told = NOTHING, args: Sequence[str] | None = None) -> C:
    """What files and flags ask for. Effect: reads the files; exits as `parse`, and once settings are printed.

    Args:
        config_type: of the app.
        manual: what its help begins with.
        told: of flags, otherwise than by their docstrings.
        args: instead of those of this process.

    Raises:
        ValueError: with everything that is wrong with the files.
    """
    words, named = split_files(sys.argv[1:] if args is None else args)
    asks: Any = ("run", Annotated[config_type, flat := tyro.conf.arg(name="")])
    asks = (*asks, read_settings(config_type, named)) if named else asks
    # One dataclass of both, so that they are in the help, and what is near to them is told.
    asked_type = make_dataclass("Asked", [("files", Annotated[Files, flat], Files()), asks], frozen=True, kw_only=True)
    asked: Any = parse(asked_type, manual, told=told, args=words)
    if asked.files.print_config:
        print(tell_settings(asked.run), end="", flush=True)
        sys.exit(0)
    return asked.run


def split_files(args: Sequence[str]) -> tuple[list[str], list[Path]]:
    """`args` without the files of --config, and these. Pure.

    Raises:
        ValueError: if --config names none.

    >>> split_files(["--config", "a.yaml", "b.yaml", "--steps", "3", "--config=c.yaml"])
    (['--steps', '3'], [PosixPath('a.yaml'), PosixPath('b.yaml'), PosixPath('c.yaml')])
    """
    words: list[str] = []
    files: list[Path] = []
    is_file = False
    for i, word in enumerate(args):
        if word.startswith("-"):
            flag, equals, value = word.partition("=")
            is_file = flag == "--config" and not equals
            if flag == "--config" and equals:
                files.append(Path(value))
            elif not is_file:
                words.append(word)
            elif i + 1 == len(args) or args[i + 1].startswith("-"):
                raise ValueError("--config needs a file, or several: --config base.yaml changes.yaml.")
        elif is_file:
            files.append(Path(word))
        else:
            words.append(word)
    return words, files


def read_settings(config_type: type[C], files: Sequence[Path]) -> C:
    """The defaults of `config_type`, with what `files` say in their place. Effect: reads them.

    Raises:
        ValueError: with everything that is wrong with them.
    """
    return build(config_type, _read_all(config_type, files))


def as_flags(config_type: type, args: Sequence[str]) -> list[str]:
    """`args` with what the files of --config say as flags before all others. Effect: reads them. Raises as
    `read_settings`."""
    words, files = split_files(args)
    return [*_flags_of(_read_all(config_type, files)), *words]


def _flags_of(given: Mapping[str, Any], above: str = "") -> list[str]:
    """What is given, as it is typed. Pure.

    >>> _flags_of({"batch": None, "data": ("a", "b"), "shuffle": False, "optim": {"state_dtype": "bfloat16"}})
    ['--batch', 'None', '--data', 'a', 'b', '--no-shuffle', '--optim.state-dtype', 'bfloat16']
    """
    words: list[str] = []
    for name, value in given.items():
        flag = f"{above}{name.replace('_', '-')}"
        if isinstance(value, Mapping):
            words += _flags_of(value, f"{flag}.")
        elif isinstance(value, bool):
            *group, last = flag.split(".")
            words.append("--" + ".".join([*group, last if value else f"no-{last}"]))
        else:
            words += [f"--{flag}", *_words_of(value)]
    return words


def _words_of(value: Any) -> list[str]:
    many = isinstance(value, list | tuple)
    return [word for item in value for word in _words_of(item)] if many else [str(value)]


def _read_all(kind: type, files: Sequence[Path]) -> dict[str, Any]:
    """What `files` say of a `kind`, one over the other; raises with everything that is wrong with them."""
    problems: list[str] = []
    given: dict[str, Any] = {}
    for file in files:
        given = merge(given, _read(file, kind, (), problems))
    refuse(problems)
    return given


def _read(file: Path, kind: type, above: tuple[Path, ...], problems: list[str]) -> dict[str, Any]:
    """What `file` says of a `kind`, over what its bases do."""
    try:
        tree, wrong = read_yaml(file)
    except ValueError as problem:
        problems.append(str(problem))
        return {}
    problems += wrong
    tree = migrate(tree, str(file), problems)
    given: dict[str, Any] = {}
    for name, line in _bases(tree, file, problems):
        base, chain = file.parent / name, (*above, file)
        if base.resolve() in [one.resolve() for one in chain]:
            problems.append(f"{file}:{line}: {name} is its own base: take one of them out.")
        elif not base.is_file():
            problems.append(f"{file}:{line}: there is no file {base}: bases are named relative to the file.")
        else:
            given = merge(given, _read(base, kind, chain, problems))
    own = Keys(tuple(item for item in tree.items if item[0].text != BASE), tree.line)
    return merge(given, Reading(str(file), kind, problems).of_keys(own, kind))


def _bases(tree: Keys, file: Path, problems: list[str]) -> list[tuple[str, int]]:
    """The names of the files that it changes, each with its line."""
    said: Tree = next((value for key, value in tree.items if key.text == BASE), Items((), 1))
    names = said.items if isinstance(said, Items) else (said,)
    if any(not isinstance(name, Word) or name.kind != "str" for name in names):
        problems.append(f"{file}:{said.line}: {BASE} has to be a file of settings, or a list of such.")
        return []
    return [(name.text, name.line) for name in names if isinstance(name, Word)]


def tell_settings(config: Any) -> str:
    """`config` as YAML that `read_settings` reads; without secrets. Pure."""
    return tell_yaml({"version": VERSION, **plain_values(to_plain(config))})


def save_settings(config: Any, folder: Path) -> None:
    """Effect: writes `config` to config.yaml in `folder`, in place of one that is there, and wholly or not at all."""
    part = folder / "config.yaml.part"
    part.write_text(tell_settings(config))
    part.replace(folder / "config.yaml")
