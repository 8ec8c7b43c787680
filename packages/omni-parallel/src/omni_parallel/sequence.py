"""Sequence parallelism by all-to-all: each rank of a group holds a slice of every row, and attention swaps tokens for
heads (DeepSpeed Ulysses, Jacobs et al., 2023, arXiv:2309.14509).

Every rank of the group passes the whole row to the model. Where the row enters the decoder it is cut, so whatever lies
before (images among the text, position ids) sees all of it; the model gives this rank's slice back, and the
caller cuts the labels alike. Attention is wrapped, not replaced: between two collectives, one for queries, keys and
values together and one for the output, the function that was there sees every token of some of the heads, so any
variant of attention stays what it was. Gradients of parameters are sums over the ranks of the group, which is why
these ranks are part of the fsdp axis.

Dimensions: B rows, S tokens a row, s = ceil(S / P) tokens of it on each of P ranks, N query heads, K key and value
heads, n heads of this rank, D head dim. A row that does not divide is lengthened by tokens that attention never sees.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from omni_mesh import Mesh
from omni_parallel.door import WHOLE, cut_inputs, encode_whole
from omni_parallel.heads import repeated_heads
from omni_parallel.plan import ParallelPlan
from omni_parallel.swap import Crossing, Route, arrive, assemble, cross_to_heads, cross_to_tokens, find_route

M = TypeVar("M", bound=nn.Module)
AttentionFn = Callable[..., tuple[Tensor, Tensor | None]]
"""(module, q_BNSD, k_BKSD, v_BKSD, mask, **facts) -> (out_BSND, weights or None); keys and values may be None."""
Over = Callable[[Any, Callable[[AttentionFn], AttentionFn]], Any]
"""What replaces every attention `a` of a module by `f(a)`."""

_PER_TOKEN = ("g", "beta")
"""Facts with a value for each head and token, (B, N, S): they travel with the queries."""

_PER_HEAD = ("s_aux", "weight", "bias")
"""Facts with a value for each head, (N, ...): each rank reads those of its own."""


def seq_to_heads(x_BNsD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(B, N, s, D) to (B, n, S, D): all heads of some tokens to all tokens of some heads, for S = P * s.

    Differentiable. Collective. Heads that do not divide are dealt unevenly, as `deal_heads` says.
    """
    route = find_route(group, x_BNsD.shape[1], x_BNsD.shape[1], 1)
    crossing = Crossing(route, [route.num_heads])
    return arrive(crossing, 0, cross_to_heads(crossing, [x_BNsD])[0])[0]


def heads_to_seq(x_BSnD: Tensor, group: dist.ProcessGroup, *, num_heads: int | None = None) -> Tensor:
    """(B, S, n, D) to (B, s, N, D): the inverse of `seq_to_heads`, up to where attention puts its heads.

    Differentiable. Collective.

    Args:
        x_BSnD: the heads of this rank; S is a multiple of the ranks.
        group: the ranks that share the row.
        num_heads: N; left out, every rank has n heads.
    """
    num_heads = num_heads or x_BSnD.shape[2] * dist.get_world_size(group)
    crossing = Crossing(find_route(group, num_heads, num_heads, 1), [num_heads])
    return assemble(crossing, [cross_to_tokens(crossing, 0, x_BSnD.transpose(1, 2))]).transpose(1, 2)


def ulysses(group: dist.ProcessGroup, *, chunks: int = 1) -> Callable[[AttentionFn], AttentionFn]:
    """The transformation of an attention over whole rows into one over the slices that the ranks of `group` hold.

    The new function takes this rank's tokens and gives the output of this rank's tokens. Two collectives forward and
    two backward, times `chunks`. What its facts say of documents (`cu_seqlens`, `max_seqlen`) is of the whole rows;
    the fact `whole_position_ids` (B, S) tells how long they are. A layer that drops all facts but `position_ids`, as
    some old ones do, costs one more collective, which gathers them.

    Args:
        group: the ranks that share each row, in the order of their slices.
        chunks: parts of this rank's heads, so that the collective of one runs under the attention of another.
    """

    def transform(attend: AttentionFn) -> AttentionFn:
        def attend_across(
            module: nn.Module,
            q_BNsD: Tensor,
            k_BKsD: Tensor | None,
            v_BKsD: Tensor | None,
            mask: Tensor | None = None,
            **facts: Any,
        ) -> tuple[Tensor, None]:
            if (whole_BS := facts.pop(WHOLE, None)) is None:
                whole_BS = _gather_positions(module, q_BNsD, facts, group)
            sent = {"q": q_BNsD, "k": k_BKsD, "v": v_BKsD}
            sent |= {name: None if (x := facts.get(name)) is None else x.unsqueeze(-1) for name in _PER_TOKEN}
            here = {name: x for name, x in sent.items() if x is not None}
            length = _row_length(module, here, whole_BS, dist.get_world_size(group), mask)
            counts = {name: x.shape[1] for name, x in here.items()}
            route = find_route(group, max(counts.values()), min(counts.values()), chunks)
            # One collective carries one dtype; what is widened on the way is given back as it was.
            wide = _widest(here)
            going = Crossing(route, list(counts.values()))
            coming = Crossing(route, [route.num_heads])
            tokens = cross_to_heads(going, [x.to(wide) for x in here.values()])
            facts = {**facts, "position_ids": whole_BS}
            returned = []
            for chunk, token in enumerate(tokens):
                arrived = dict(zip(here, arrive(going, chunk, token), strict=True))
                run = route.runs[chunk][route.rank]
                own = _facts_of(route, run, facts)
                if run:
                    row = {name: x[:, :, :length].to(here[name].dtype) for name, x in arrived.items()}
                    even = _even_out(row, route, run, counts)
                    told = facts | own | {name: even.pop(name).squeeze(-1) for name in _PER_TOKEN if name in even}
                    out = attend(module, even["q"], even.get("k"), even.get("v"), mask, **told)[0].transpose(1, 2)
                    # Tokens that only lengthen the row get an output of zero.
                    missing = arrived["q"].shape[2] - length
                    out_BnSD = F.pad(out, (0, 0, 0, missing)) if missing else out
                else:
                    out_BnSD = _attend_nothing(arrived["v" if "v" in arrived else "q"].to(q_BNsD.dtype), own)
                returned.append(cross_to_tokens(coming, chunk, out_BnSD))
            return assemble(coming, returned).transpose(1, 2), None

        return attend_across

    return transform


def apply_ulysses(model: M, mesh: Mesh, plan: ParallelPlan, *, over: Over) -> M:
    """The same model, which takes whole rows and gives this rank's slice of them. Donates `model`.

    Apply it after the attention is chosen and before `shard_fsdp`. It does nothing on a mesh without sequence ranks.
    Labels are the caller's to cut (`omni_data.shard_sequence`), after they were shifted.

    Args:
        model: every rank of a sequence group calls it with the same arguments: whole rows, `position_ids` of whole
            rows, documents of whole rows (`cu_seqlens`, `max_seqlen`).
        mesh: rows are cut over its axis sp.
        plan: names the decoder, and the door where rows are cut; the position encodings that depend on the whole row;
            and into how many chunks heads are cut to overlap.
        over: replaces every attention of a module, as `omni_models.map_attention` does.

    Raises:
        ValueError: in the call of the model, where its inputs contradict one another or cannot be cut.
    """
    if mesh.spec.sp == 1:
        return model
    group = mesh.tokens.get_group("sp")
    decoder = model.get_submodule(plan.decoder)
    over(decoder, ulysses(group, chunks=plan.sp_chunks))
    for name in plan.rotaries:
        rotary = model.get_submodule(name)
        rotary.forward = partial(encode_whole, group, rotary.forward)
    door = model.get_submodule(plan.door)
    names = tuple(inspect.signature(door.forward).parameters)
    door.register_forward_pre_hook(partial(cut_inputs, group, names), with_kwargs=True)
    return model


def _attend_nothing(empty_BnSD: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    """The output of a rank without heads, which joins every collective and has gradients all the same."""
    for value in own.values():
        empty_BnSD = empty_BnSD * value.sum().to(empty_BnSD.dtype)
    return empty_BnSD


def _gather_positions(module: nn.Module, q_BNsD: Tensor, facts: Mapping[str, Any], group: dist.ProcessGroup) -> Tensor:
    """The positions (B, S) of whole rows, for a layer that hands on those of its slice and nothing else."""
    B, _, s, _ = q_BNsD.shape
    positions = facts.get("position_ids")
    if positions is None or positions.ndim != 2 or positions.shape[1] != s or facts.get("cu_seqlens") is not None:
        raise ValueError(
            f"{type(module).__name__} was called with a slice of a row and not told of the row ({WHOLE} is missing): "
            "use apply_ulysses, which cuts rows where they enter the decoder, on a model that hands on its arguments."
        )
    whole_SB = positions.new_empty(dist.get_world_size(group) * s, B)
    dist.all_gather_into_tensor(whole_SB, positions.expand(B, s).T.contiguous(), group=group)
    return whole_SB.T


def _row_length(
    module: nn.Module, here: Mapping[str, Tensor], whole_BS: Tensor, ranks: int, mask: Tensor | None
) -> int:
    """S, if what attention was given can be swapped at all."""
    tokens = here["q"].shape[2]
    S = whole_BS.shape[-1]
    problems = [
        f"{which} is of {x.shape[2]} tokens, this rank's slice of a row of {S} over {ranks} ranks is of "
        f"{-(-S // ranks)}: only attention of a row to itself can be cut."
        for which, x in here.items()
        if x.shape[2] != -(-S // ranks)
    ]
    most = max(x.shape[1] for x in here.values())
    problems += [
        f"{which} has {x.shape[1]} heads, which do not divide {most}: each must serve as many of the others."
        for which, x in here.items()
        if most % x.shape[1]
    ]
    if mask is not None:
        problems.append(f"a mask {list(mask.shape)} came along, of which only {tokens} tokens are here.")
    if problems:
        raise ValueError(
            f"the attention of {type(module).__name__} cannot be cut by heads:\n"
            + "\n".join(f"  - {p}" for p in problems)
        )
    return S


def _widest(here: Mapping[str, Tensor]) -> torch.dtype:
    first, *others = {x.dtype for x in here.values()}
    for dtype in others:
        first = torch.promote_types(first, dtype)
    return first


def _even_out(named: dict[str, Tensor], route: Route, run: range, counts: Mapping[str, int]) -> dict[str, Tensor]:
    """The same tensors, with heads repeated where they would serve unequal numbers of the others."""
    evened = {}
    for name, x in named.items():
        index = repeated_heads(run, route.num_heads // counts[name])
        # Slices, since a tensor of indices would make the host wait for the GPU.
        evened[name] = x if index is None else torch.cat([x[:, i : i + 1] for i in index], dim=1)
    return evened


def _facts_of(route: Route, run: range, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that have a value for each head, of this rank's heads."""
    values = {name: facts[name] for name in _PER_HEAD if facts.get(name) is not None}
    for name, value in values.items():
        if len(value) != route.num_heads:
            raise ValueError(f"{name} has {len(value)} values for {route.num_heads} heads: one for each can be cut.")
    return {name: value[run.start : run.stop] for name, value in values.items()}
