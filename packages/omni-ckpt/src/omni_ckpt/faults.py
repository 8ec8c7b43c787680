"""Failures that a test orders at the points of a save. Without an order nothing happens anywhere.

    staged       the values are in host memory, if they are to be, and training may change them
    begun        every rank agreed on the path, and the directory is made under its temporary name
    writing      a piece of a shard is about to be written
    written      the shard of this rank is written and on the device
    indexed      the index is written, and found to name and cover every tensor
    sealed       the manifest is written and on the device
    published    the directory has its name: this is the commit
    pruned       a checkpoint that is not kept has lost its name, and none of its files

A save is given `at`, which it calls with each point and the directory there; `nothing` is the default. A fault is a
line, "writing:rank1:kill", so that it can be given to a process.
"""

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from omni_ckpt.ranks import my_rank

Point: TypeAlias = Literal["staged", "begun", "writing", "written", "indexed", "sealed", "published", "pruned"]
Deed: TypeAlias = Literal["kill", "stop", "full", "broken", "slow", "flip"]
At: TypeAlias = Callable[[Point, Path], None]

_SLOW_S: Final = 1.0


def nothing(point: Point, path: Path) -> None:
    """What happens at each point of a save that nobody tests. Effect: none."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, where, and on which rank."""

    point: Point
    rank: int
    deed: Deed
    """Kills or stops the process; finds the disk full or broken; loses a second; flips a bit of each shard."""

    def __call__(self, point: Point, path: Path) -> None:
        """Let it happen, if this is the point and the rank. Effect: what it says."""
        if (point, my_rank()) != (self.point, self.rank):
            return
        match self.deed:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            case "broken":
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            case "slow":
                time.sleep(_SLOW_S)
            case "flip":
                flip_bits_(path)


def parse_fault(line: str) -> Fault:
    """The fault that `line` names. Pure.

    >>> parse_fault("writing:rank1:kill")
    Fault(point='writing', rank=1, deed='kill')

    Raises:
        ValueError: if it names none.
    """
    point, rank, deed = (*line.split(":"), "", "")[:3]
    number = rank.removeprefix("rank")
    if point not in get_args(Point) or deed not in get_args(Deed) or not number.isdecimal():
        raise ValueError(
            f"{line!r} is no fault: write POINT:rankN:DEED, with POINT one of {', '.join(get_args(Point))}, "
            f"and DEED one of {', '.join(get_args(Deed))}."
        )
    return Fault(point, int(number), deed)  # pyright: ignore[reportArgumentType] It is one of them.


def flip_bits_(path: Path) -> None:
    """Flip a bit in the middle of each shard in the directory `path`. Effect: writes."""
    for file in path.glob("*.distcp"):
        if size := file.stat().st_size:
            with file.open("r+b") as stream:
                stream.seek(size // 2)
                byte = stream.read(1)[0]
                stream.seek(size // 2)
                stream.write(bytes([byte ^ 1]))
