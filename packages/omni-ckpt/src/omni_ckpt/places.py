"""Where files are: on a disk, or in any storage that fsspec knows, by a URL. Effect: disk or network.

A place is a path, of `pathlib` for a disk and of `universal_pathlib` for a URL ("s3://bucket/run", "gs://...",
"memory://..."), which has the same methods. What differs is here: object storage has no rename that is one act, and
nothing to flush.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any


def as_place(where: str | Path) -> Path:
    """`where` as a place: a directory as an absolute path, a URL as a path of its storage.

    Raises:
        ValueError: if it is a URL, and what reads URLs is not installed.
    """
    if isinstance(where, str) and "://" in where:
        try:
            from upath import UPath
        except ImportError as error:
            raise ValueError(f"{where} is a URL, for which omni-ckpt[remote] must be installed.") from error
        return UPath(where)  # pyright: ignore[reportReturnType] It has the methods of a path.
    if isinstance(where, Path) and re.match(r"[a-z][a-z0-9+.-]+:/", str(where)):
        raise ValueError(f"{where} was a URL, which a Path has spoilt: give it as a string.")
    return Path(where).absolute() if isinstance(where, str | Path) else where


def is_local(place: Path) -> bool:
    """Whether `place` is on a disk. Pure."""
    return isinstance(place, Path)


def sync(place: Path) -> None:
    """Wait until `place` is on the device: the bytes of a file, or the names in a directory. Storage has it already."""
    if not is_local(place):
        return
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(place: Path) -> None:
    """Delete the directory `place` and all in it."""
    if is_local(place):
        shutil.rmtree(place)
    else:
        _storage(place).rm(_name(place), recursive=True)


def move(place: Path, to: Path) -> None:
    """Give the directory `place` the name `to`. In object storage that is a copy, and not one act."""
    if is_local(place):
        place.rename(to)
    else:
        _storage(place).copy(f"{_name(place)}/", f"{_name(to)}/", recursive=True)
        remove(place)


def _storage(place: Path) -> Any:
    return place.fs  # pyright: ignore[reportAttributeAccessIssue] Of `universal_pathlib`: the file system of fsspec.


def _name(place: Path) -> str:
    return place.path  # pyright: ignore[reportAttributeAccessIssue]
