"""Is there room for what a run will write and hold? Effect: asks the system."""

import os
import resource
from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from disk import free_bytes, size_of
from torch import Tensor, nn

from omni_ckpt import Retention, is_there, newest_whole, step_of, to_prune
from omni_data import Part
from omni_mesh import MeshSpec
from omni_parallel import AdamWConfig


def check_room(
    root: Path, tensors: Mapping[str, Tensor], keep: Retention, flag: str, *, moments: torch.dtype = torch.float32
) -> None:
    """Raises `ValueError` if the disk of `root`, which `flag` gives, has no room for the checkpoints to come.

    Effect: asks the system.

    The newest and one more are there at a time, of parameters in fp32 and two `moments` each. What is there
    already makes room for them as far as it will be deleted: what killed saves left, by the next, and checkpoints that
    nothing keeps.
    """
    stale = [path for kind in ("tmp", "gone") for path in root.glob(f"step-*.{kind}")]
    reclaimed = sum(file.stat().st_size for path in stale for file in path.rglob("*") if file.is_file())
    each = torch.float32.itemsize + 2 * moments.itemsize
    size = sum(each * tensor.numel() for tensor in tensors.values())
    needed = size * max(1, keep.newest + 1 - len(will_go(root, keep)))
    if (free := free_bytes(root) + reclaimed) < needed:
        raise ValueError(
            f"{flag} {root} has {size_of(free)} free, and checkpoints will take {size_of(needed)}: "
            f"{size_of(size)} each, with --keep {keep.newest} and the one being written. Make room, keep fewer, "
            f"or choose another {flag}."
        )


def will_go(root: Path, keep: Retention) -> list[Path]:
    """The checkpoints under `root` that `keep` deletes once newer ones are there. Effect: reads.

    With `keep.best` the newest counts as one of the best, which it may be.
    """
    going = to_prune(root, replace(keep, newest=1))
    newest = newest_whole(root).path
    if newest is None or keep.best or is_there(newest / "PINNED") or (keep.every and step_of(newest) % keep.every == 0):
        return going
    return [*going, newest]


def offload_problems(
    optim: AdamWConfig,
    model: nn.Module,
    spec: MeshSpec,
    device: str,
    *,
    free: int | None = None,
    gpus: int | None = None,
) -> list[str]:
    """Why moments cannot be held in memory of the host, if they are to be, in words. Effect: asks the system.

    What is pinned is taken at once, and a machine that has not as much ends processes instead of telling. A tenth has
    to stay free, for what else will be there: activations, checkpoints on their way, what is read ahead.

    Args:
        optim: what was asked for.
        model: what is trained, also on meta.
        spec: of the ranks that share it.
        device: the type that computes.
        free: bytes of memory of this machine; None to ask.
        gpus: of this machine; None to ask.
    """
    if not optim.offload:
        return []
    if device == "cpu":
        return ["--optim.offload: on a CPU moments are in memory of the host already. Leave it out."]
    numbers = sum(param.numel() for param in model.parameters() if param.requires_grad)
    each = 2 * getattr(torch, optim.state_dtype).itemsize * numbers // spec.fsdp
    ranks = min(spec.world, torch.cuda.device_count() if gpus is None else gpus)
    free = free_memory() if free is None else free
    if each * ranks <= free - free // 10:
        return []
    return [
        f"--optim.offload pins {size_of(each)} for each of {ranks} ranks of this machine, which has {size_of(free)} "
        "free, of which a tenth has to stay: share parameters among more ranks, set "
        "--optim.state-dtype bfloat16, or leave it out."
    ]


def make_room_for_files(parts: Sequence[Part], shards: int) -> None:
    """Let this process, and those it starts, open a file for each of `shards` virtual shards of each stream in `parts`.

    Effect: raises the limit of the system as far as it may be raised.

    Raises:
        ValueError: if that is not far enough.
    """
    streams = sum(not isinstance(part.source, Sized) for part in parts)
    needed = streams * shards + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(
            f"{streams} streams of {shards} virtual shards on each rank need {needed} open files, and this system "
            f"allows {hard} (ulimit -Hn): raise that, stream fewer sources, or choose fewer --virtual-shards."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


SPARE_FILES: Final = 1024
"""That a run opens for everything else."""
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
