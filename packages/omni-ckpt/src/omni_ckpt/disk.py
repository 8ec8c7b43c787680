"""Directories that are there whole or not at all. Effect: disk or network.

On a disk a directory is written under another name, everything in it is flushed to the device, and one rename completes
it. To delete one, it is renamed away first. In object storage, where a rename is a copy, its manifest, which is written
last and deleted first, is what completes it; so it is in a copy, too. Killed anywhere, what is complete is whole.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from omni_ckpt.layout import MANIFEST_FILE, deleting
from omni_ckpt.places import ABSENT, as_place, asking, copy, is_local, is_there, read_bytes, remove, remove_file, sync

T = TypeVar("T")


def write_json(value: Any, file: Path) -> None:
    """Write `value` to `file`, durably."""
    with asking(file):
        file.write_text(json.dumps(value, indent=1) + "\n")
    sync(file)


def read_json(path: Path, name: str, take: Callable[[Any], T]) -> T:
    """What `take` finds in the JSON file `name` of checkpoint `path`.

    Raises:
        ValueError: if there is no such file, or one in which it is not found, with the file.
        OSError: if it cannot be read.
    """
    file = as_place(path) / name
    refuse_link(file)
    try:
        content = read_bytes(file)
    except ABSENT:
        raise ValueError(f"{path} is not a checkpoint of omni_ckpt: it has no {name}.") from None
    try:
        return take(json.loads(content, object_pairs_hook=_without_doubles))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{file} is damaged: {error!r}.") from error


def is_inside(name: Any) -> bool:
    """Whether `name` is that of a file in the directory that names it, and of none elsewhere. Pure."""
    return isinstance(name, str) and Path(name).name == name and name not in ("", "..") and "\0" not in name


def leads_out(file: Path) -> bool:
    """Whether `file` is a link to somewhere outside of its directory."""
    return is_local(file) and file.is_symlink() and file.resolve().parent != file.parent.resolve()


def refuse_link(file: Path) -> None:
    """Raises `ValueError` if `file` leads out of its directory."""
    if leads_out(file):
        raise ValueError(f"{file} is a link out of the checkpoint: put the file itself there.")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a name is there twice among {', '.join(list(found)[:10])}")
    return found


def publish(temporary: Path, path: Path) -> None:
    """Complete the finished directory `temporary` as `path`, durably. This is the commit: before it there is none."""
    if is_local(path):
        sync(temporary)
        temporary.rename(path)
        sync(path.parent)


def clear(path: Path) -> None:
    """Delete the directory `path`, if it is there. On a disk nobody takes it for complete; in storage nobody does from
    the first request on."""
    if is_there(path):
        if not is_local(path):
            remove_file(path / MANIFEST_FILE)
        remove(path)


def unname(path: Path) -> Path:
    """Let nobody take the directory `path` for complete any more, and return where it is now."""
    doomed = deleting(path)
    if is_local(path):
        clear(doomed)
        path.rename(doomed)
    else:
        remove_file(path / MANIFEST_FILE)
    return doomed


def move(path: Path, to: Path) -> None:
    """Give the directory `path` the name `to`. In object storage it has both for a while; what is
    under the new one is complete once all of it is there."""
    if is_local(path):
        path.rename(to)
    else:
        copy(path, to, last=MANIFEST_FILE)
        clear(path)
