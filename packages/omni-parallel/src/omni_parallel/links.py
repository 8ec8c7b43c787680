"""How the ranks that share parameters gather them and sum their gradients: by collectives, or by copies between GPUs.

A collective of NCCL is a kernel, and takes multiprocessors from the products under which it runs. GPUs of one host can
read each other's memory, and their copy engines move it while all multiprocessors compute; a kernel of one block tells
the others that memory is ready, and another that it was read. Copies are for measuring: see `docs/log.md`.

Either way gradients travel in the dtype in which they were made, and are summed in that of the sum, in the order of
ranks: half of the bytes of widening them first, and the same numbers, since widening is exact. Between hosts it would
be more bytes: see `find_links`.

Dimensions: P ranks of a group, n numbers that each of them keeps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from platform import node
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from omni_parallel.local import fuses

Empty = Callable[[Sequence[int], torch.dtype, torch.device], Tensor]


@dataclass(frozen=True, slots=True)
class Links:
    """What moves numbers between the ranks of a group. Both are for the current stream, which waits for them."""

    empty: Empty
    """Memory that the two others can send from: of a shape, a dtype and a device, the same on all ranks."""
    gather: Callable[[Tensor, dist.ProcessGroup], None]
    """Fill (P * n,) of this `empty`, of which each rank has filled its own n."""
    exchange: Callable[[Tensor, dist.ProcessGroup], Tensor]
    """From (P * n,) of this `empty`, a part for each rank, to (P, n), a part from each; from itself, anything."""


def gather_by_collective_(whole_Pn: Tensor, group: dist.ProcessGroup) -> None:
    """One all-gather, in place."""
    own = whole_Pn.chunk(group.size())[group.rank()]
    dist.all_gather_into_tensor(whole_Pn, own, group=group)


def exchange_by_collective(parts_Pn: Tensor, group: dist.ProcessGroup) -> Tensor:
    """One all-to-all."""
    received = torch.empty_like(parts_Pn)
    dist.all_to_all_single(received, parts_Pn, group=group)
    return received.unflatten(0, (group.size(), -1))


def empty_anywhere(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=device)


def empty_shared(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that other GPUs of the host can read, from a pool of its own."""
    symmetric = _symmetric_memory()
    with torch.cuda.use_mem_pool(symmetric.get_mem_pool(device)):
        return torch.empty(*shape, dtype=dtype, device=device)


def gather_by_copies_(whole_Pn: Tensor, group: dist.ProcessGroup) -> None:
    """Read what the others have, from the next rank on, so that no two read from one at once."""
    shared, parts = _symmetric_memory().rendezvous(whole_Pn, group), whole_Pn.chunk(group.size())
    shared.barrier()
    for peer in _others(group):
        parts[peer].copy_(shared.get_buffer(peer, parts[peer].shape, whole_Pn.dtype, peer * len(parts[peer])))
    shared.barrier()


def exchange_by_copies(parts_Pn: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Read this rank's part of what each other has."""
    shared = _symmetric_memory().rendezvous(parts_Pn, group)
    received_Pn = torch.empty_like(parts_Pn).unflatten(0, (group.size(), -1))
    n = received_Pn.shape[1]
    shared.barrier()
    for peer in _others(group):
        received_Pn[peer].copy_(shared.get_buffer(peer, (n,), parts_Pn.dtype, group.rank() * n))
    shared.barrier()
    return received_Pn


COLLECTIVES: Final = Links(empty_anywhere, gather_by_collective_, exchange_by_collective)
COPIES: Final = Links(empty_shared, gather_by_copies_, exchange_by_copies)


def find_links(group: dist.ProcessGroup, *, host: str | None = None) -> Links | None:
    """`COLLECTIVES` if all ranks of `group` are of one host, else None. Effect: collective, of the group.

    Between hosts an all-to-all sends each number from every rank of one to some rank of the other. A sum that goes from
    rank to rank sends it, widened, once.

    Args:
        group: of the ranks that share parameters.
        host: the name of this rank's; None to ask for it.
    """
    hosts: list[str | None] = [None] * group.size()
    dist.all_gather_object(hosts, node() if host is None else host, group=group)
    return COLLECTIVES if len(set(hosts)) == 1 else None


class Gather:
    """What FSDP2 gathers the parameters of a unit with."""

    def __init__(self, links: Links) -> None:
        self.links = links

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Where they are gathered. FSDP2 puts this rank's into their place."""
        return self.links.empty(size, dtype, device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        own = output_tensor.chunk(group.size())[group.rank()]
        assert not async_op and own.data_ptr() == input_tensor.data_ptr()
        self.links.gather(output_tensor, group)


class NarrowSum:
    """What FSDP2 sums the gradients of a unit with: sent in `dtype`, summed in that which FSDP2 asks for."""

    def __init__(self, links: Links, dtype: torch.dtype) -> None:
        self.links, self.dtype = links, dtype
        self.sends = False
        """Whether memory to send from was handed out, and none yet for the sums, which FSDP2 asks for next."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """By turns what gradients are sent from, and where their sums go."""
        self.sends = not self.sends
        return self.links.empty(size, self.dtype, device) if self.sends else empty_anywhere(size, dtype, device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        assert not async_op and not self.sends and len(input_tensor) == group.size() * len(output_tensor)
        own = input_tensor.chunk(group.size())[group.rank()]
        sum_ranks_(output_tensor, self.links.exchange(input_tensor, group), own, group.rank())


def sum_ranks_(total_n: Tensor, received_Pn: Tensor, own_n: Tensor, rank: int) -> Tensor:
    """Fill `total_n` with the sum, in its dtype and in the order of ranks, of `received_Pn`, in which `own_n` stands
    for what is at `rank`."""
    if fuses(total_n, received_Pn, own_n):
        from omni_parallel import triton_sum

        return triton_sum.sum_ranks_(total_n, received_Pn, own_n, rank)
    parts = [own_n if peer == rank else part_n for peer, part_n in enumerate(received_Pn)]
    total_n.copy_(parts[0])
    for part_n in parts[1:]:
        total_n += part_n
    return total_n


def _others(group: dist.ProcessGroup) -> list[int]:
    return [(group.rank() + step) % group.size() for step in range(1, group.size())]


def _symmetric_memory() -> Any:
    # Torch names this module as private, and documents it: it has no other way to memory that GPUs share.
    import torch.distributed._symmetric_memory as symmetric

    return symmetric
