"""Directories that are there whole or not at all. Effect: disk.

A directory is written under another name, everything in it is flushed to the device, and one rename completes it. To
delete one, it is renamed away first. Killed anywhere, what has the name is whole.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from omni_ckpt.layout import deleting

T = TypeVar("T")


def write_json(value: Any, file: Path) -> None:
    """Write `value` to `file`, durably."""
    file.write_text(json.dumps(value, indent=1) + "\n")
    sync(file)


def read_json(path: Path, name: str, take: Callable[[Any], T]) -> T:
    """What `take` finds in the JSON file `name` of checkpoint `path`.

    Raises:
        ValueError: if there is no such file, or one in which it is not found, with the file.
    """
    file = Path(path) / name
    if not file.is_file():
        raise ValueError(f"{path} is not a checkpoint of omni_ckpt: it has no {name}.")
    try:
        return take(json.loads(file.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged: {error!r}.") from error


def is_inside(name: str) -> bool:
    """Whether `name` is that of a file in the directory that names it, and of none elsewhere. Pure."""
    return Path(name).name == name and name not in ("", "..")


def sync(path: Path) -> None:
    """Wait until `path` is on the device: the bytes of a file, or the names in a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(temporary: Path, path: Path) -> None:
    """Give the finished directory `temporary` its name, durably. This is the commit: before it, there is no `path`."""
    sync(temporary)
    temporary.rename(path)
    sync(path.parent)


def clear(path: Path) -> None:
    """Delete the directory `path`, which nobody takes for complete, if it is there."""
    if path.exists():
        shutil.rmtree(path)


def unname(path: Path) -> Path:
    """Take its name from the directory `path`, so that nobody takes it for complete, and return where it is now."""
    doomed = deleting(path)
    clear(doomed)
    path.rename(doomed)
    return doomed
