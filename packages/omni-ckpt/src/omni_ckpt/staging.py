"""Host memory that the values of a tree are copied to, so that they are saved while training changes them.

What a rank holds of a tensor, its shard, is copied. Memory that a GPU copies to at full speed is pinned, which takes
longer than the copy; so it is made once, for a tree, and used again for each save of one that is alike.
"""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from omni_ckpt.tree import TensorSpec, flatten

_BLOCK: Final = 1 << 30
"""Bytes allocated at once: torch rounds pinned memory up to a power of two."""
_ALIGNED: Final = 64


@dataclass(frozen=True, slots=True)
class Staging:
    """Room for the shards of a tree, by flat name. One save at a time may use it."""

    shards: Mapping[str, Tensor]
    busy: threading.Lock = field(default_factory=threading.Lock)

    @property
    def nbytes(self) -> int:
        """Bytes of the shards."""
        return sum(shard.nbytes for shard in self.shards.values())


def local_shard(tensor: Tensor) -> Tensor:
    """What this rank holds of `tensor`, without history. Shares memory."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def staging_bytes(tree: Mapping[str, Any]) -> int:
    """Bytes that a `Staging` of `tree` takes on this rank. Pure."""
    return sum(local_shard(tensor).nbytes for tensor in flatten(tree)[0].values())


def make_staging(tree: Mapping[str, Any]) -> Staging:
    """Room for what this rank holds of `tree`, pinned where it holds tensors of a GPU. Effect: allocates host memory.

    Raises:
        ValueError: if `tree` has leaves that cannot be stored.
    """
    shards = {name: local_shard(tensor) for name, tensor in flatten(tree)[0].items()}
    pinned = any(shard.is_cuda for shard in shards.values())
    room: dict[str, Tensor] = {}
    for group in _blocks({name: _aligned(shard.nbytes) for name, shard in shards.items()}):
        block = torch.empty(sum(_aligned(shards[name].nbytes) for name in group), dtype=torch.uint8, pin_memory=pinned)
        offset = 0
        for name in group:
            shard = shards[name]
            room[name] = block[offset : offset + shard.nbytes].view(shard.dtype).view(shard.shape)
            offset += _aligned(shard.nbytes)
    return Staging(room)


@torch.no_grad()
def fill_staging_(staging: Staging, shards: Mapping[str, Tensor]) -> None:
    """Copy `shards` into `staging`, and return when they are there. Waits for the GPU.

    Raises:
        ValueError: if it was made for other shards, or a save that uses it is under way.
    """
    here = {name: TensorSpec(tuple(shard.shape), shard.dtype) for name, shard in shards.items()}
    room = {name: TensorSpec(tuple(shard.shape), shard.dtype) for name, shard in staging.shards.items()}
    if here != room:
        raise ValueError("the staging was made for a tree with other names, shapes or dtypes: make one for this tree.")
    if not staging.busy.acquire(blocking=False):
        raise ValueError("a save that uses this staging is under way: wait for it, or make another staging.")
    try:
        for name, shard in shards.items():
            staging.shards[name].copy_(shard, non_blocking=True)
        for device in {shard.device for shard in shards.values() if shard.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
    except RuntimeError:
        staging.busy.release()
        raise


def _blocks(sizes: Mapping[str, int]) -> Iterable[list[str]]:
    """Names in order, as many together as fit into a block."""
    group: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if group and filled + size > _BLOCK:
            yield group
            group, filled = [], 0
        group.append(name)
        filled += size
    if group:
        yield group


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
