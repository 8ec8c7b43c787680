"""Is there room for what a run will write and hold? Effect: asks the system."""

import os
from collections.abc import Mapping
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryFile

from torch import Tensor

from omni_ckpt import steps


def check_writable(out: Path) -> None:
    """Raises `ValueError` if nothing can be written into `out`, which is made if it is not there. Effect: makes it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as problem:
        raise ValueError(f"nothing can be written into --out {out}: {problem.strerror}.") from problem


def check_room(out: Path, tensors: Mapping[str, Tensor], keep: int) -> None:
    """Raises `ValueError` if the disk of `out` has no room for the checkpoints to come. Effect: asks the system.

    One more than are kept are there at a time, of parameters and two moments in fp32 each; those that are there already
    have their place.
    """
    size = sum(3 * 4 * tensor.numel() for tensor in tensors.values())
    needed = size * max(1, keep + 1 - len(steps(out)))
    if (free := disk_usage(out).free) < needed:
        raise ValueError(
            f"--out {out} has {free / 1e9:,.1f} GB free, and checkpoints will take {needed / 1e9:,.1f} GB: "
            f"{size / 1e9:,.1f} GB each, with --keep {keep} and the one being written. Make room, keep fewer, or "
            "choose another --out."
        )


def free_memory() -> int:
    """Bytes of host memory that this machine, or the container around this process, still has to give. Effect: asks."""
    bounds = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        (line,) = (line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
        bounds.append(int(line.split()[1]) * 1024)
    else:
        bounds.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    limit, used = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current"))
    if limit.exists() and (most := limit.read_text().strip()).isdecimal():
        bounds.append(int(most) - int(used.read_text()))
    return min(bounds)
