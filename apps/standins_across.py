"""What stands for collectives where a model is rehearsed on the meta device: they allocate and send what those of
sequence and expert ranks do.

Dimensions: T tokens of this rank, H features, K choices a token, P ranks of a group, N heads, n of them on this rank, B
rows, S tokens of a row, s = S / P of them on this rank, D head dim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from standins import Notes
from torch import Tensor, nn

from omni_models.experts import compute_rows, sort_choices


def swap_heads(P: int, notes: Notes) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """From attention over whole rows to attention of one of P ranks that hold slices, as `omni_parallel.sequence`."""

    def transform(attend: Callable[..., Any]) -> Callable[..., Any]:
        def attend_across(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any = None, **facts: Any) -> Any:
            N = q.shape[1]
            q, k, v = _ToHeads.apply(P, notes, q, k, v)  # pyright: ignore[reportGeneralTypeIssues]
            if (sink_N := facts.get("s_aux")) is not None:
                facts["s_aux"] = sink_N[: -(-len(sink_N) // P)]
            out_BSnD = attend(module, q, k, v, mask, **facts)[0]
            return _ToTokens.apply(P, N, notes, out_BSnD), None

        return attend_across

    return transform


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, P: int, notes: Notes, *xs_BNsD: Tensor) -> Any:
        ctx.notes, ctx.shapes, ctx.heads = notes, [x.shape for x in xs_BNsD], [-(-x.shape[1] // P) for x in xs_BNsD]
        shapes = [(x.shape[0], n, P * x.shape[2], x.shape[3]) for x, n in zip(xs_BNsD, ctx.heads, strict=True)]
        sizes = [torch.Size(shape).numel() for shape in shapes]
        sent, received = (xs_BNsD[0].new_empty(sum(sizes)) for _ in range(2))
        notes.moves(*xs_BNsD, sent)
        notes.sends("all_to_all", "sp", received)
        return tuple(part.view(shape) for part, shape in zip(received.split(sizes), shapes, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        sent, received = (grads[0].new_empty(sum(grad.numel() for grad in grads)) for _ in range(2))
        ctx.notes.moves(*grads, sent)
        ctx.notes.sends("all_to_all", "sp", received)
        del sent
        outs = [grads[0].new_empty(B, s, N, D).transpose(1, 2) for B, N, s, D in ctx.shapes]
        ctx.notes.moves(received, *outs)
        return None, None, *outs


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, P: int, N: int, notes: Notes, out_BSnD: Tensor) -> Tensor:
        ctx.notes, ctx.shape = notes, out_BSnD.shape
        B, S, _, D = out_BSnD.shape
        received = out_BSnD.new_empty(B * (S // P) * N * D)
        notes.sends("all_to_all", "sp", received)
        whole_BsND = out_BSnD.new_empty(B, S // P, N, D)
        notes.moves(received, whole_BsND)
        return whole_BsND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        sent, received = grads[0].new_empty(grads[0].numel()), grads[0].new_empty(ctx.shape)
        ctx.notes.moves(grads[0], sent)
        ctx.notes.sends("all_to_all", "sp", received)
        return None, None, None, received


@dataclass(frozen=True, slots=True)
class Experts:
    """How experts are computed, as an `ExpertsFn`: grouped, and spread over `ranks` as `omni_parallel.apply_ep` does.
    Choices are even: each expert has as many."""

    notes: Notes
    ranks: int = 1
    even: bool = True
    """Whether memory is set aside for every choice of every token."""

    def __call__(self, module: Any, x_TH: Tensor, expert_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """(T, H): what the experts make of tokens."""
        (T, K), P = expert_TK.shape, self.ranks
        if P == 1:
            return self._compute(module, x_TH, expert_TK, weights_TK, T * K)
        weights_TK = weights_TK.to(torch.promote_types(weights_TK.dtype, torch.float32))
        here = (x_TH, weights_TK, expert_TK)
        if 2 * P > K:
            # A token goes to a rank once, however many of its experts are there.
            U = min(T * K, round(T * P * (1 - (1 - 1 / P) ** K)))
            self.notes.sends("all_gather", "ep", expert_TK.new_empty(P * 2 * P))
            x, weights, expert = (self._move(self._pick(each, U), U, "all_to_all") for each in here)
            out_UH = self._compute(module, x, expert, weights, T * K)
            return self._pick(self._move(out_UH, U, "all_to_all"), T)
        if not (self.even and P == 2):
            self.notes.sends("all_gather", "ep", expert_TK.new_empty(P * (P + 1)))
        rows = P * T * K if self.even and P == 2 else T * K
        self.notes.used = T * K / rows
        x, weights, expert = (self._move(each, P * T, "all_gather") for each in here)
        out_PTH = self._compute(module, x, expert, weights, rows)
        return _SumNarrow.apply(out_PTH, T, x_TH.dtype, self.notes)  # pyright: ignore[reportReturnType]

    def _compute(self, module: Any, x_TH: Tensor, expert_TK: Tensor, weights_TK: Tensor, rows: int) -> Tensor:
        experts = module.num_experts // self.ranks
        routes = sort_choices(expert_TK, experts, None if self.ranks == 1 else rows)
        rows_RH = self._pick(x_TH, rows)
        out_RH = compute_rows(module, rows_RH, routes)
        return _Collect.apply(out_RH, weights_TK, routes, self.notes)  # pyright: ignore[reportReturnType]

    def _pick(self, x_TX: Tensor, count: int) -> Tensor:
        """So many rows, each of which is, or is made of, some of those."""
        return _Move.apply(x_TX, count, "", self.notes)  # pyright: ignore[reportReturnType]

    def _move(self, x_TX: Tensor, count: int, op: str) -> Tensor:
        """So many rows, that come of those of all ranks by a collective."""
        return _Move.apply(x_TX, count, op, self.notes)  # pyright: ignore[reportReturnType]


_TURNED = {"all_gather": "reduce_scatter", "reduce_scatter": "all_gather", "all_to_all": "all_to_all", "": ""}
"""What a collective is for gradients."""


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TX: Tensor, count: int, op: str, notes: Notes) -> Tensor:
        ctx.rows, ctx.op, ctx.notes = len(x_TX), op, notes
        return _moved(x_TX, count, op, notes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _moved(grads[0], ctx.rows, _TURNED[ctx.op], ctx.notes), None, None, None


class _SumNarrow(torch.autograd.Function):
    """Parts of all ranks, summed as wide as they are, and narrowed; their gradient travels narrow."""

    @staticmethod
    def forward(ctx: Any, x_PTH: Tensor, count: int, dtype: torch.dtype, notes: Notes) -> Tensor:
        ctx.rows, ctx.notes = len(x_PTH), notes
        wide_TH = _moved(x_PTH, count, "reduce_scatter", notes)
        out_TH = wide_TH.new_empty(wide_TH.shape, dtype=dtype)
        notes.moves(wide_TH, out_TH)
        return out_TH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _moved(grads[0], ctx.rows, "all_gather", ctx.notes), None, None, None


def _moved(x_TX: Tensor, count: int, op: str, notes: Notes) -> Tensor:
    out = x_TX.new_empty(count, *x_TX.shape[1:])
    if not op:
        notes.moves(x_TX, out, share=notes.used)
        return out
    narrow = op == "reduce_scatter" and x_TX.dtype.itemsize < 4
    notes.sends("all_to_all" if narrow else op, "ep", x_TX if op == "reduce_scatter" else out)
    if narrow:  # Sent as it is, and added up where it arrives.
        arrived = torch.empty_like(x_TX)
        notes.moves(arrived, out)
    return out


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RH: Tensor, weights_TK: Tensor, routes: Any, notes: Notes) -> Tensor:
        ctx.save_for_backward(rows_RH, weights_TK, routes.order_R, routes.place_TK)
        ctx.notes, dtype = notes, torch.promote_types(rows_RH.dtype, weights_TK.dtype)
        out_TH = rows_RH.new_empty(len(weights_TK), rows_RH.shape[1], dtype=dtype)
        notes.moves(rows_RH, out_TH, share=notes.used)
        return out_TH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        rows_RH, weights_TK, *_ = ctx.saved_tensors
        d_rows_RH = torch.empty_like(rows_RH)
        ctx.notes.moves(grads[0], rows_RH, d_rows_RH, share=ctx.notes.used)
        return d_rows_RH, torch.empty_like(weights_TK, dtype=torch.float32).to(weights_TK.dtype), None, None
