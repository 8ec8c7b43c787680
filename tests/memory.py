"""The most memory that a call takes of this process, beyond what it had: bytes that belong to no file."""

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")
_MMAP_THRESHOLD: Final = -3
"""Of glibc's mallopt: blocks from so many bytes on are the system's again once they are freed."""


def own_bytes() -> int:
    """What this process holds now of its own; pages of files that it maps are the system's to take back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def peak_of(call: Callable[[], T], every_s: float = 0.001) -> tuple[T, int]:
    """What `call` returns, and the most bytes this process held while it ran, beyond those before it.

    Large blocks are given back at once from now on, so that what is seen is in use.
    """
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 18)
    before, most, done = own_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(every_s):
            most = max(most, own_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        value = call()
        most = max(most, own_bytes())
    finally:
        done.set()
        thread.join()
    return value, most - before
