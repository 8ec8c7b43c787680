"""Names of models and tokenizers: directories here, or names of the hub. Effect: looks at the disk."""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from huggingface_hub import try_to_load_from_cache

T = TypeVar("T")


def read_named(read: Callable[[str], T], name: str) -> T:
    """What `read` makes of the directory or the model of the hub that `name` is. Effect: as `read`.

    Raises:
        ValueError: as `read`, with how to fetch what the hub may have; and at once if `name` is a path of nothing.
    """
    if not is_fetchable(name):
        if is_path(name) and not Path(name).exists():
            raise ValueError(f"there is no directory {name}{nearest(Path(name))}.")
        return read(name)
    if (parent := Path(name).parent).is_dir():
        raise ValueError(
            f"there is no {name}{nearest(Path(name))}, and {parent} is a directory here. If a model of the hub is "
            f"meant: {how_to_fetch(name)}"
        )
    try:
        return read(name)
    except ValueError as problem:
        if not is_fetchable(name):
            raise
        raise ValueError(f"{problem}\n{how_to_fetch(name)}") from problem


def how_to_fetch(name: str) -> str:
    """Of a model that the hub may have, in words. Pure."""
    folder = f"models/{name.rpartition('/')[2]}"
    return (
        f"Where there is network, fetch it: uv run apps/download.py {name}. For another machine: the same with --to "
        f"{folder}, and copy that folder there, where {folder} is its name."
    )


def is_fetchable(name: str) -> bool:
    """Whether only the hub can have a model or tokenizer of that name: it is spelled owner/name, and is not here."""
    if name.count("/") != 1 or is_path(name) or Path(name).exists():
        return False
    return not any(isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "tokenizer.json"))


def is_path(name: str) -> bool:
    """Whether only a directory can have that name: it is neither one word nor owner/name. Pure."""
    return name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1


def nearest(path: Path) -> str:
    """ " (did you mean ...?)" if what is beside `path`, or beside its parent, is spelled nearly so, or begins so; else
    nothing, also where nothing may be read. Effect: looks at the disk."""
    try:
        for missing, rest in ((path, Path()), (path.parent, Path(path.name))):
            beside = [entry.name for entry in missing.parent.iterdir()] if missing.parent.is_dir() else []
            longer = [name for name in sorted(beside) if missing.name and name.startswith(missing.name)]
            if not missing.exists() and (close := get_close_matches(missing.name, beside, n=1) or longer):
                found = missing.parent / close[0]
                return f" (did you mean {found / rest if (found / rest).exists() else found}?)"
    except OSError:
        pass
    return ""
