"""Expert parallelism: each rank of a group holds some of the experts of a layer whole, and tokens meet them there
(GShard, Lepikhin et al., 2020, arXiv:2006.16668).

Experts are wrapped, not replaced: a function from tokens and their choices to the weighted sum of what the chosen
experts make of them becomes one that lets every rank do its experts' part and adds the parts up. A token goes to a rank
once, however many of its experts are there, and one sum comes back. Where it would go to almost every rank anyway, all
tokens are gathered and their parts summed by a reduction, without lists; and if ranks have equally many tokens, without
anything that the host would have to wait for. Routing and weights stay where they are.

Dimensions: T tokens of this rank, K choices a token, U tokens sent, u tokens arrived, P ranks of the group, E experts,
e = E / P experts of this rank, H hidden size.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import Shard, distribute_tensor

from omni_mesh import Mesh
from omni_parallel.across import Across, Pick, Put, exchange, gather, sum_scatter
from omni_parallel.plan import ParallelPlan

M = TypeVar("M", bound=nn.Module)
ExpertsFn = Callable[..., Tensor]
"""(module, x_TH, expert_TK, weights_TK, *, rows=None, across=None) -> out_TH: what the experts of a module make of
tokens, weighted and summed, in the dtype of the tokens or a wider one. Where only some experts are here, they are
numbered from 0, a choice of another number adds nothing, and at most `rows` choices are here. With `across`, an
`Across`, it gives `across(sum)`; one that makes its own gradient may call its two functions instead."""
OverExperts = Callable[[Any, tuple[str, ...], Callable[[ExpertsFn], ExpertsFn]], Any]
"""What replaces the experts `e` of each module named by `f(e)`."""

Told = Callable[[], AbstractContextManager[None]]
"""What makes a context in which experts are told how tokens travel."""
_TRAVELS = "omni_travels"
"""The attribute by which an experts module, for the time of a call, notes how tokens travel, or is told it."""


@dataclass(frozen=True, slots=True)
class Travel:
    """How much goes where in one call: what this rank told, int64 on the device, and by rank what each told."""

    told: Tensor
    tables: list[list[int]]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens, the experts of each, and how much each of them counts; of this rank or of others."""

    x: Tensor
    expert: Tensor
    weights: Tensor


Part = Callable[[Tokens, int, Across], Tensor]
"""What the experts of this rank, and across ranks of all, make of tokens that have at most so many choices of them."""
Find = Callable[[Tensor], Travel]


def expert_parallel(group: dist.ProcessGroup, *, even: bool = False) -> Callable[[ExpertsFn], ExpertsFn]:
    """The transformation of experts that are all here into experts that the ranks of `group` share, in order.

    The function that was there is given tokens of all ranks, and the choices of this rank's experts counted from 0; it
    has to leave out the others, of which there is no parameter here. Modules have `num_experts`, E. Parts are added up
    in fp32; of a token's gradient they come in its own dtype. Collective, also backward, on ranks without tokens too,
    of which each may have its own number. The host waits once, to learn how much comes and goes; never backward, nor in
    a recomputation by `recompute_blocks`.

    Args:
        group: the ranks.
        even: promises that in each call all ranks have equally many tokens. Where two ranks gather them (choices of a
            token are at least 4) the host then waits in the first call alone, to see it kept, and memory is set aside
            for every choice, as if all were of experts of this rank: twice what they take on average. (With more ranks
            it would be more, and the host waits.) A promise that is broken later hangs.

    Raises:
        ValueError: if the ranks do not divide the experts, or are seen to have different numbers of tokens in spite of
            `even`.
    """

    def transform(compute: ExpertsFn) -> ExpertsFn:
        seen = not even

        def compute_across(module: Any, x_TH: Tensor, expert_TK: Tensor, weights_TK: Tensor) -> Tensor:
            nonlocal seen
            own, beyond = divmod(module.num_experts, group.size())
            if beyond:
                raise ValueError(f"{module.num_experts} experts do not divide over {group.size()} ranks.")
            # A sum of parts that were rounded would depend on how many there are.
            wide = torch.promote_types(weights_TK.dtype, torch.float32)

            def compute_part(tokens: Tokens, rows: int, across: Across) -> Tensor:
                # Counted from the first of this rank, around the circle of all and the one that there is not.
                expert = (tokens.expert - own * group.rank()) % (module.num_experts + 1)
                widened = Across(lambda part: across.there(part.to(wide)), across.back)
                given = partial(compute, module, tokens.x, expert, tokens.weights, rows=rows)
                # A recomputation ends with the last thing that a gradient needs, which then is not the exchange.
                return widened(given()) if recomputed else given(across=widened)

            if not seen:
                _check_even(x_TH, group)
                seen = True
            tokens = Tokens(x_TH, expert_TK, weights_TK.to(wide))
            recomputed = hasattr(module, _TRAVELS)
            find = partial(getattr(module, _TRAVELS, _find_travel), group=group)
            if 2 * group.size() > expert_TK.shape[1]:
                return _sent(compute_part, find, group, tokens, own)
            return _gathered(compute_part, group, tokens, own, None if even and group.size() <= 2 else find)

        return compute_across

    return transform


def apply_ep(model: M, mesh: Mesh, plan: ParallelPlan, *, over: OverExperts, even: bool = False) -> M:
    """The same model, whose experts are spread over the axis ep of `mesh`. Donates `model`.

    Each parameter of an expert becomes a DTensor on that axis, cut along its first dim, of which this rank keeps its
    part; on the meta device nothing is ever whole. Apply it after the experts are chosen and before `shard_fsdp`, which
    cuts the rest over efsdp. It does nothing on a mesh without expert ranks.

    Args:
        model: also on the meta device. Otherwise every rank has the same weights.
        mesh: experts are spread over its axis ep.
        plan: names the modules of experts.
        over: replaces the experts of the modules named, as `omni_models.map_experts` does.
        even: promises that all ranks always have equally many tokens, which saves waits: see `expert_parallel`.
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
    return over(model, plan.experts, expert_parallel(ep.get_group(), even=even))


def remember_travels(modules: Sequence[nn.Module]) -> tuple[Told, Told]:
    """What makes two contexts, of a forward pass and of its recomputation: in the second the experts in `modules` know
    from the first how much goes where, without an exchange or a wait. Other amounts are an error, other choices not."""
    noted: deque[Travel] = deque()

    def note(told: Tensor, group: dist.ProcessGroup) -> Travel:
        noted.append(_find_travel(told, group))
        return noted[-1]

    def recall(told: Tensor, group: dist.ProcessGroup) -> Travel:
        if not noted:
            raise RuntimeError("a recomputed block can be run backward once: how its tokens travelled is used up.")
        travel = noted.popleft()
        # Loud without making the host wait; torch has no public name for it.
        same = (travel.told == told).all()
        torch._assert_async(same, "a recomputed router chose other experts than it did: it has to do the same twice")
        return travel

    return partial(_told, modules, note), partial(_told, modules, recall)


def read_tables(tables: Tensor) -> list[list[int]]:
    """`tables` as numbers, for which the host waits."""
    return tables.tolist()


def _gathered(compute: Part, group: dist.ProcessGroup, tokens: Tokens, own: int, find: Find | None) -> Tensor:
    """Every token meets the experts of every rank. Without `find` ranks have equally many."""
    (T, K), P = tokens.expert.shape, group.size()
    longest, rows = T, P * T * K
    if find is not None:
        travel = find(F.pad(_count(tokens.expert // own, P), (0, 1), value=T))
        longest, rows = max(table[P] for table in travel.tables), sum(table[group.rank()] for table in travel.tables)
    if longest > T:
        # Ranks may have different numbers of tokens; one that only fills up chooses an expert that there is not.
        fill = partial(F.pad, pad=(0, 0, 0, longest - T))
        tokens = Tokens(fill(tokens.x), fill(tokens.expert, value=own * P), fill(tokens.weights))
    bring = Across(partial(gather, group=group), partial(sum_scatter, group=group))
    # What comes back is as wide as what went, so that its gradient is too.
    dtype = tokens.x.dtype
    give = Across(lambda part: bring.back(part).to(dtype), bring.there)
    out = compute(Tokens(bring(tokens.x), bring.there(tokens.expert), bring(tokens.weights)), rows, give)
    # A view would lose the hooks of sharding.
    return out if longest == T else out[:T].clone()


def _sent(compute: Part, find: Find, group: dist.ProcessGroup, tokens: Tokens, own: int) -> Tensor:
    """A token goes to each rank that has an expert of its choice, once."""
    P, me = group.size(), group.rank()
    rank_TK = tokens.expert // own
    again_TKK = (rank_TK[:, :, None] == rank_TK[:, None, :]).tril(-1)
    goes_TK = rank_TK.masked_fill(again_TKK.any(-1), P)
    travel = find(torch.cat([_count(goes_TK, P), _count(rank_TK, P)]))
    going, coming = travel.tables[me][:P], [table[me] for table in travel.tables]
    order_C = goes_TK.flatten().sort(stable=True).indices
    place_C = torch.empty_like(order_C)
    place_C[order_C] = torch.arange(len(order_C), device=order_C.device)
    lists = order_C[: sum(going)] // rank_TK.shape[1], place_C.view(rank_TK.shape)
    send = partial(exchange, going=going, coming=coming, group=group)
    give_back = partial(exchange, going=coming, coming=going, group=group)
    bring = Across(send, give_back)
    x_u, weights_u = (bring(Pick.apply(each, *lists)) for each in (tokens.x, tokens.weights))  # pyright: ignore[reportArgumentType]
    arrived, rows = Tokens(x_u, send(tokens.expert[lists[0]]), weights_u), sum(t[P + me] for t in travel.tables)
    return Put.apply(compute(arrived, rows, Across(give_back, send)), *lists)  # pyright: ignore[reportReturnType]


def _check_even(x_TH: Tensor, group: dist.ProcessGroup) -> None:
    lengths = read_tables(gather(torch.tensor([[len(x_TH)]], device=x_TH.device), group))
    if len({tuple(table) for table in lengths}) > 1:
        told = ", ".join(str(length) for (length,) in lengths)
        raise ValueError(f"even=True, but the ranks that share experts have {told} tokens: leave it out.")


def _count(rank_TK: Tensor, ranks: int) -> Tensor:
    """How many of `rank_TK` are of each rank, (P,) int64."""
    return (rank_TK.flatten() == torch.arange(ranks, device=rank_TK.device)[:, None]).sum(1)


def _find_travel(told: Tensor, group: dist.ProcessGroup) -> Travel:
    """What each rank tells. Collective; the host waits for the device."""
    return Travel(told, read_tables(gather(told[None], group)))


@contextmanager
def _told(modules: Sequence[nn.Module], find: Callable[[Tensor, dist.ProcessGroup], Travel]) -> Iterator[None]:
    """While open, each of `modules` finds how its tokens travel by `find`."""
    for module in modules:
        setattr(module, _TRAVELS, find)
    try:
        yield
    finally:
        for module in modules:
            delattr(module, _TRAVELS)
