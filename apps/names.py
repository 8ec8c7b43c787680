"""Names of models and tokenizers: directories here, or names of the hub. Effect: looks at the disk."""

from collections.abc import Callable
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
        return read(name)
    if (parent := Path(name).parent).is_dir():
        raise ValueError(
            f"there is no {name}, and {parent} is a directory here. If a model of the hub is meant, fetch it first, "
            f"where there is network: uv run apps/download.py {name}"
        )
    try:
        return read(name)
    except ValueError as problem:
        if not is_fetchable(name):
            raise
        told = f"{problem}\nWhere there is network, fetch it: uv run apps/download.py {name}"
        raise ValueError(told) from problem


def is_fetchable(name: str) -> bool:
    """Whether only the hub can have a model or tokenizer of that name: it is spelled owner/name, and is not here."""
    spelled = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")
    if not spelled or Path(name).exists():
        return False
    return not any(isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "tokenizer.json"))
