"""Expert parallelism: each rank of a group holds some of the experts of a layer whole, and rows travel to them and back
(GShard, Lepikhin et al., 2020, arXiv:2006.16668).

Experts are wrapped, not replaced: a function from rows sorted by expert to what the experts make of them becomes one
that sends each row to the rank of its expert, computes there, and brings the result back to where the row was. Routing,
weights and sums stay where they are. One exchange of rows out and one back, and the same backward.

Dimensions: R rows on this rank, r rows that come to its experts, E experts, P ranks of the group, e = E / P experts of
this rank, H hidden size.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import Shard, distribute_tensor

from omni_mesh import Mesh
from omni_parallel.plan import ParallelPlan

M = TypeVar("M", bound=nn.Module)
ExpertsFn = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(module, rows_RH, counts_E) -> out_RH: what each expert makes of its rows, which are sorted by expert."""
OverExperts = Callable[[Any, tuple[str, ...], Callable[[ExpertsFn], ExpertsFn]], Any]
"""What replaces the experts `e` of each module named by `f(e)`."""

Told = Callable[[], AbstractContextManager[None]]
"""What makes a context in which experts are told how rows travel."""

_TRAVELS = "omni_travels"
"""The attribute by which an experts module, for the time of a call, notes how rows travel, or is told how they did."""


@dataclass(frozen=True, slots=True)
class Travel:
    """How many rows go where in one call."""

    counts_E: Tensor
    """Rows that this rank has for each expert, int64, on the device."""
    there_Pe: Tensor
    """Rows that each rank sent to each expert of this rank, int64, on the device."""
    going: list[int]
    """Rows that each rank gets from this one."""
    coming: list[int]
    """Rows that this rank gets from each."""


def expert_parallel(group: dist.ProcessGroup) -> Callable[[ExpertsFn], ExpertsFn]:
    """The transformation of experts that are all here into experts that the ranks of `group` share, in order.

    The new function takes this rank's rows of all experts and gives their results, in the same order; the function that
    was there sees the rows of this rank's experts alone, sorted by expert, and their counts. Collective, also backward,
    on ranks without rows too. The host waits for the device once, to learn how many rows come and go; never backward,
    nor in a recomputation by `recompute_blocks`.
    """

    def transform(compute: ExpertsFn) -> ExpertsFn:
        def compute_across(module: nn.Module, rows_RH: Tensor, counts_E: Tensor) -> Tensor:
            travel: Travel = getattr(module, _TRAVELS, _find_travel)(counts_E, group)
            there = travel.going, travel.coming, group
            arrived_rH = _Exchange.apply(rows_RH, *there)
            # Rows come by rank and by expert, and are wanted by expert and by rank.
            by_expert_r, by_rank_r = merge_orders(travel.there_Pe, sum(travel.coming))
            out_rH = compute(module, _Permute.apply(arrived_rH, by_expert_r, by_rank_r), travel.there_Pe.sum(0))
            back = travel.coming, travel.going, group
            return _Exchange.apply(_Permute.apply(out_rH, by_rank_r, by_expert_r), *back)  # pyright: ignore[reportReturnType]

        return compute_across

    return transform


def apply_ep(model: M, mesh: Mesh, plan: ParallelPlan, *, over: OverExperts) -> M:
    """The same model, whose experts are spread over the axis ep of `mesh`. Donates `model`.

    Each parameter of an expert becomes a DTensor on that axis, cut along its first dim, of which this rank keeps its
    part; on the meta device nothing is ever whole. Apply it after the experts are chosen and before `shard_fsdp`, which
    cuts the rest over efsdp. It does nothing on a mesh without expert ranks.

    Args:
        model: also on the meta device. Otherwise every rank has the same weights.
        mesh: experts are spread over its axis ep.
        plan: names the modules of experts.
        over: replaces the experts of the modules named, as `omni_models.map_experts` does.
    """
    if mesh.spec.ep == 1:
        return model
    ep = mesh.experts["ep"]
    for name in plan.experts:
        module = model.get_submodule(name)
        for key, param in list(module.named_parameters(recurse=False)):
            # Every rank has the same values, or none, so that nothing need be sent.
            part = distribute_tensor(param.data, ep, [Shard(0)], src_data_rank=None)
            setattr(module, key, nn.Parameter(part, requires_grad=param.requires_grad))
    return over(model, plan.experts, expert_parallel(ep.get_group()))


def remember_travels(modules: Sequence[nn.Module]) -> tuple[Told, Told]:
    """What makes two contexts, of a forward pass and of its recomputation: in the second the experts in `modules` know
    from the first how many rows go where. Nothing is exchanged, nor the device waited for, to learn it again."""
    noted: deque[Travel] = deque()

    def note(counts_E: Tensor, group: dist.ProcessGroup) -> Travel:
        noted.append(_find_travel(counts_E, group))
        return noted[-1]

    def recall(counts_E: Tensor, group: dist.ProcessGroup) -> Travel:
        if not noted:
            raise RuntimeError("a recomputed block can be run backward once: how its rows travelled is used up.")
        travel = noted.popleft()
        # Loud without making the host wait; torch has no public name for it.
        same = (travel.counts_E == counts_E).all()
        torch._assert_async(same, "a recomputed router chose other experts than it did: it has to do the same twice")
        return travel

    return partial(_told, modules, note), partial(_told, modules, recall)


def merge_orders(counts_Pe: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The order that sorts rows which lie by rank and by expert by expert and by rank, and the order back. Pure.

    Args:
        counts_Pe: rows that each rank sent to each expert, int64.
        rows: how many there are together, so that the host need not ask.

    >>> merge_orders(torch.tensor([[1, 2], [1, 0]]), 4)  # expert 0, expert 1, expert 1 of one rank; expert 0 of another
    (tensor([0, 3, 1, 2]), tensor([0, 2, 3, 1]))
    """
    counts_eP = counts_Pe.T
    starts_Pe = _starts(counts_Pe)
    starts_eP = _starts(counts_eP)
    move = partial(torch.repeat_interleave, output_size=rows)
    place_r = torch.arange(rows, device=counts_Pe.device)
    back_r = place_r + move((starts_eP.T - starts_Pe).flatten(), counts_Pe.flatten())
    there_r = place_r + move((starts_Pe.T - starts_eP).flatten(), counts_eP.flatten())
    return there_r, back_r


def _starts(counts: Tensor) -> Tensor:
    """Where each block of rows begins, of blocks that lie one after another."""
    flat = counts.flatten()
    return (flat.cumsum(0) - flat).view(counts.shape)


def read_counts(counts: Tensor) -> list[list[int]]:
    """`counts` as numbers, for which the host waits."""
    return counts.tolist()


def _find_travel(counts_E: Tensor, group: dist.ProcessGroup) -> Travel:
    """How the rows of each expert travel, agreed between the ranks. Collective; the host waits for the device."""
    ranks = dist.get_world_size(group)
    there_E = torch.empty_like(counts_E)
    dist.all_to_all_single(there_E, counts_E, group=group)
    there_Pe = there_E.view(ranks, -1)
    return Travel(counts_E, there_Pe, *read_counts(torch.stack([counts_E.view(ranks, -1).sum(1), there_Pe.sum(1)])))


@contextmanager
def _told(modules: Sequence[nn.Module], find: Callable[[Tensor, dist.ProcessGroup], Travel]) -> Iterator[None]:
    """While open, each of `modules` finds how its rows travel by `find`."""
    for module in modules:
        setattr(module, _TRAVELS, find)
    try:
        yield
    finally:
        for module in modules:
            delattr(module, _TRAVELS)


class _Exchange(torch.autograd.Function):
    """Send and receive so many rows to and from each rank; backward, the gradients go the other way."""

    @staticmethod
    def forward(ctx: Any, rows_RH: Tensor, going: list[int], coming: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.way = coming, going, group
        return _exchange(rows_RH, going, coming, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return _exchange(grads[0], *ctx.way), None, None, None


class _Permute(torch.autograd.Function):
    """Rows in another order; backward, gradients in the order they were."""

    @staticmethod
    def forward(ctx: Any, rows_RH: Tensor, order_R: Tensor, back_R: Tensor) -> Tensor:
        ctx.save_for_backward(back_R)
        return rows_RH[order_R]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (back_R,) = ctx.saved_tensors
        return grads[0][back_R], None, None


def _exchange(rows_RH: Tensor, going: list[int], coming: list[int], group: dist.ProcessGroup) -> Tensor:
    arrived = rows_RH.new_empty(sum(coming), *rows_RH.shape[1:])
    dist.all_to_all_single(arrived, rows_RH.contiguous(), coming, going, group=group)
    return arrived
