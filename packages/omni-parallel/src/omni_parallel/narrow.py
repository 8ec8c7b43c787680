"""Gradients that travel in the dtype in which they were made, and are summed over ranks in a wider one.

FSDP2 widens them first. That is twice the bytes and the same numbers, since widening is exact: here an all-to-all takes
each rank the parts that it keeps, and a kernel widens and adds them, in the order of ranks. Between hosts an all-to-all
is more bytes, not fewer: see `is_one_host`.

Dimensions: P ranks of a group, n numbers that each of them keeps.
"""

from collections.abc import Callable, Sequence
from platform import node
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from omni_parallel.local import fuses


def is_one_host(group: dist.ProcessGroup, *, host: str | None = None) -> bool:
    """Whether all ranks of `group` are of one host. Effect: collective, of the group.

    Where they are not, each number leaves a host as often as it has ranks in an all-to-all, and once, widened, in a sum
    that goes from rank to rank.

    Args:
        group: of the ranks that share parameters.
        host: the name of this rank's; None to ask for it.
    """
    hosts: list[str | None] = [None] * group.size()
    dist.all_gather_object(hosts, node() if host is None else host, group=group)
    return len(set(hosts)) == 1


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory to send from."""
    return torch.empty(*shape, dtype=dtype, device=device)


def exchange(parts_Pn: Tensor, group: dist.ProcessGroup) -> Tensor:
    """From (P * n,), a part for each rank, to (P, n), a part from each. One all-to-all."""
    received = torch.empty_like(parts_Pn)
    dist.all_to_all_single(received, parts_Pn, group=group)
    return received.unflatten(0, (group.size(), -1))


class NarrowSum:
    """What FSDP2 sums the gradients of a unit with: sent in `dtype`, summed in that which FSDP2 asks for.

    What makes memory to send from, and what exchanges it, may be others. Of what a rank gets from itself any values do.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        *,
        empty: Callable[[Sequence[int], torch.dtype, torch.device], Tensor] = empty,
        exchange: Callable[[Tensor, dist.ProcessGroup], Tensor] = exchange,
    ) -> None:
        self.dtype, self.empty, self.exchange = dtype, empty, exchange
        self.sends = False
        """Whether memory to send from was handed out, and none yet for the sums, which FSDP2 asks for next."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """By turns what gradients are sent from, and where their sums go."""
        self.sends = not self.sends
        return self.empty(size, self.dtype, device) if self.sends else empty(size, dtype, device)

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
        sum_ranks_(output_tensor, self.exchange(input_tensor, group), own, group.rank())


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
