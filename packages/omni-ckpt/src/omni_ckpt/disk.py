"""Directories that are there whole or not at all. Effect: disk.

A directory is written under another name, everything in it is flushed to the device, and one rename completes it. To
delete one, it is renamed away first. Killed anywhere, what has the name is whole.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from omni_ckpt.layout import deleting


def write_json(value: Any, file: Path) -> None:
    """Write `value` to `file`, durably."""
    file.write_text(json.dumps(value, indent=1) + "\n")
    sync(file)


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


def discard(path: Path) -> None:
    """Delete the complete directory `path`: it loses its name before the first file goes."""
    doomed = deleting(path)
    clear(doomed)
    path.rename(doomed)
    shutil.rmtree(doomed)
