"""Joining and leaving the world: the process group of all ranks."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from omni_mesh.meeting import meet
from omni_mesh.started import Place, own_place


@dataclass(frozen=True, slots=True)
class World:
    """A joined world, as one of its ranks sees it."""

    rank: int
    local_rank: int
    size: int
    device: torch.device


def pick_device(kind: str | None, local_rank: int, gpus: int) -> torch.device:
    """The device of the rank at `local_rank` on a machine with `gpus` GPUs; `kind` None means a GPU if there is one.

    Pure. Raises `ValueError` for another kind than "cuda" or "cpu", and for a rank without a GPU of its own.
    """
    kind = kind or ("cuda" if gpus else "cpu")
    if kind == "cpu":
        return torch.device("cpu")
    if kind != "cuda":
        raise ValueError(f'device={kind!r}: ranks live on "cuda" or on "cpu". The index is the rank\'s own.')
    if local_rank >= gpus:
        raise ValueError(
            f"Local rank {local_rank} needs a GPU of its own, but this machine shows {gpus}. Start at most {gpus} "
            f'ranks here, check CUDA_VISIBLE_DEVICES, or join with device="cpu".'
        )
    return torch.device("cuda", local_rank)


@contextmanager
def join_world(*, device: str | None = None, timeout_s: float = 600.0) -> Iterator[World]:
    """The world that this process was started in, joined; a world of one if it was started plainly.

    `device` is "cuda" or "cpu", by default cuda if there is any. `timeout_s` (seconds) is how long a rank waits for the
    others, at the start and in each collective, before it fails.

    Effect: makes the rank's GPU the current one and initializes the default process group: NCCL for CUDA tensors and
    gloo for CPU tensors. Leaving waits for every rank, then destroys the group. When the body raises, the others may
    never come, so nobody is waited for; and unless this is a world of one, the group is left for the end of the process
    to close. Raises `ValueError` for an environment or a device that does not fit.
    """
    place = own_place()
    rank, size, local_rank = (place.rank, place.size, place.local_rank) if place else (0, 1, 0)
    where = pick_device(device, local_rank, torch.cuda.device_count())
    if where.type == "cuda":
        torch.cuda.set_device(where)
    # The group is not bound to the device (`device_id`): NCCL would then make a communicator at once for every axis of
    # every view, used or not, which took 3.8 GiB of each of two H200s. Unbound, an axis costs nothing until its first
    # collective.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo",
        store=_meet(place, timeout_s),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )
    try:
        yield World(rank, local_rank, size, where)
    except BaseException:
        # Closing connections makes the other ranks fail, which could be told before the error on its way here, its
        # cause. It could also wait for a collective that will never end.
        if size == 1:
            _leave()
        raise
    dist.barrier()
    _leave()


def _meet(place: Place | None, timeout_s: float) -> dist.Store:
    """Where ranks find each other: at MASTER_ADDR, as torch does; a world of one meets in memory, without a port."""
    if place is None:
        return dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    store, *_ = next(dist.rendezvous("env://", place.rank, place.size, timeout=timedelta(seconds=timeout_s)))
    return meet(store, place.rank, place.size, timeout_s=timeout_s)


def set_timeouts(groups: Iterable[dist.ProcessGroup | None], timeout_s: float) -> None:
    """Let collectives of `groups` (None is the world) fail after `timeout_s` seconds from now on.

    The first step of a run may take long, on each rank in its own time; a later one that does is a failure. Effect: on
    this rank; every rank should do the same.
    """
    # The public name is younger than torch 2.11, the private one deprecated since.
    act = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    for group in groups:
        act(timedelta(seconds=timeout_s), group)


def _leave() -> None:
    """Destroy every group, and make torch forget the meshes made of them."""
    # What an operator made of DTensors is remembered by the shape of their mesh, and with it a mesh: in the next world
    # of this process it would name groups that are gone, or others of the same name. torch has no public way to forget.
    from torch.distributed.tensor.debug import (
        _clear_sharding_prop_cache,  # pyright: ignore[reportPrivateImportUsage]
    )

    dist.destroy_process_group()
    _clear_sharding_prop_cache()
