"""How this process was started, which needs no torch: as which rank of how many.

Three ways are understood: by torchrun or `launch` (RANK, WORLD_SIZE, LOCAL_RANK), as a task of Slurm's srun
(SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID), and plainly, which is a world of one. Only this file and `launch` read
the environment.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_TORCHRUN: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SLURM: Final = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands among those started with it."""

    rank: int
    size: int
    local_rank: int
    """Position among the ranks of this machine, which is the index of its GPU."""


def find_place(env: Mapping[str, str]) -> Place | None:
    """The place that `env` gives this process, or None where nobody started it as a rank. Pure.

    Slurm counts only inside a step (srun) of several tasks: a batch script, and a shell opened by srun, start ranks of
    their own. Raises `ValueError` when variables that belong together are missing, all of them named.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        starter, names = "torchrun", _TORCHRUN
    elif "SLURM_STEP_ID" in env and env.get("SLURM_NTASKS", "1") != "1":
        starter, names = "srun", _SLURM
    else:
        return None
    if missing := [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in env]:
        raise ValueError(
            f"This process looks like a rank started by {starter}, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set. Export the host of rank 0 as MASTER_ADDR and a free "
            f"port of it as MASTER_PORT, the same for every rank; or unset {names[0]} and {names[1]} to run alone."
        )
    rank, size, local_rank = (int(env[name]) for name in names)
    return Place(rank, size, local_rank)


def own_place() -> Place | None:
    """The place of this process. Effect: reads the environment. Raises `ValueError` as `find_place`."""
    return find_place(os.environ)


def world_size() -> int | None:
    """The number of ranks that this process was started among, or None if it was not started as a rank."""
    place = own_place()
    return place.size if place else None
