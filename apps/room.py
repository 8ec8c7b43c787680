"""Is there room for what a run will write and hold? Effect: asks the system."""

import os
from collections.abc import Mapping
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryFile
from typing import Final

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
    have their place, and what killed saves left is deleted by the next.
    """
    stale = [path for kind in ("tmp", "gone") for path in out.glob(f"step-*.{kind}")]
    reclaimed = sum(file.stat().st_size for path in stale for file in path.rglob("*") if file.is_file())
    size = sum(3 * 4 * tensor.numel() for tensor in tensors.values())
    needed = size * max(1, keep + 1 - len(steps(out)))
    if (free := disk_usage(out).free + reclaimed) < needed:
        raise ValueError(
            f"--out {out} has {free / 1e9:,.1f} GB free, and checkpoints will take {needed / 1e9:,.1f} GB: "
            f"{size / 1e9:,.1f} GB each, with --keep {keep} and the one being written. Make room, keep fewer, or "
            "choose another --out."
        )


CGROUPS: Final = Path("/sys/fs/cgroup")


def group_memory(folder: Path) -> int | None:
    """Bytes that a container or a job may still take, by its cgroup (version 2); None if it has no limit.

    Files that were read are in memory, and counted there, but give way.
    """
    limit, used, kinds = (folder / f"memory.{name}" for name in ("max", "current", "stat"))
    if not limit.exists() or not (most := limit.read_text().strip()).isdecimal():
        return None
    counts = dict(line.split() for line in kinds.read_text().splitlines())
    return int(most) - int(used.read_text()) + int(counts.get("inactive_file", 0))


def free_memory() -> int:
    """Bytes of host memory that this machine, or the container around this process, still has to give. Effect: asks."""
    bounds = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        (line,) = (line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
        bounds.append(int(line.split()[1]) * 1024)
    else:
        bounds.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    membership = Path("/proc/self/cgroup")
    lines = membership.read_text().splitlines() if membership.exists() else []
    group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if group is not None:
        folder = CGROUPS / group
        bounds += [left for level in (folder, *folder.parents) if (left := group_memory(level)) is not None]
    return min(bounds)
