"""What stands for kernels where a model is rehearsed on the meta device: functions that allocate, keep and give what
those do, and compute nothing.

A GPU's kernels keep less than torch's operators, which is what meta tensors would be shown. How much memory each reads
and writes is noted, and what it sends.

Dimensions: H features, R rows of experts, F their width, B rows, S tokens of a row, N heads, D head dim.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni_models.fa4 import fa4_forward, round_dim
from omni_models.fused import Kernels


class Notes(Protocol):
    """What listens to stand-ins."""

    used: float
    """How much of the rows that are set aside for experts is used."""

    def moves(self, *tensors: Tensor, share: float = 1.0) -> None:
        """A kernel reads or writes such a share of these."""
        ...

    def sends(self, op: str, axis: str, x: Tensor) -> None:
        """A collective of the ranks of `axis` is given, or gives, `x`: the larger of the two."""
        ...


class Relay:
    """Hands on what it is told to whoever listens now."""

    def __init__(self) -> None:
        self.to: Notes | None = None

    @property
    def notes(self) -> Notes:
        """Who listens."""
        assert self.to is not None
        return self.to


def make_kernels(relay: Relay) -> Kernels:
    """The fused kernels of a model."""

    def norm(x: Tensor, weight_H: Tensor, eps: float, offset: float, casting: str) -> Tensor:
        return _Norm.apply(x, weight_H, relay.notes)  # pyright: ignore[reportReturnType]

    def gate(gate: Tensor, up: Tensor) -> Tensor:
        return _Gate.apply(gate, up, relay.notes)  # pyright: ignore[reportReturnType]

    def turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, width: int) -> tuple[Tensor, Tensor]:
        return _Turn.apply(q, k, cos, sin, relay.notes)  # pyright: ignore[reportReturnType]

    def halves(both_RF: Tensor) -> Tensor:
        return _Halves.apply(both_RF, relay.notes)  # pyright: ignore[reportReturnType]

    return Kernels(norm, gate, gate, turn, halves)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_H: Tensor, notes: Notes) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        ctx.save_for_backward(x, weight_H, x.new_empty(x.shape[:-1], dtype=torch.float32))
        ctx.notes = notes
        notes.moves(x, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight_H, _ = ctx.saved_tensors
        d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        ctx.notes.moves(x, grads[0], d_x)
        return d_x, torch.empty_like(weight_H), None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, notes: Notes) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.notes, out = notes, torch.empty_like(gate)
        notes.moves(gate, up, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        ctx.notes.moves(gate, up, grads[0], d_gate, d_up)
        return d_gate, d_up, None


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 Autograd hands arguments on by position.
        ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, notes: Notes
    ) -> Any:
        ctx.save_for_backward(cos, sin)
        ctx.notes = notes
        return _like_tokens(notes, q, k)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return *_like_tokens(ctx.notes, *grads), None, None, None


def _like_tokens(notes: Notes, *xs_BNSD: Tensor) -> tuple[Tensor, ...]:
    """Others of these shapes, which lie in memory as (B, S, N, D)."""
    outs = tuple(x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in xs_BNSD)
    notes.moves(*xs_BNSD, *outs)
    return outs


class _Halves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both_RF: Tensor, notes: Notes) -> Tensor:
        ctx.save_for_backward(both_RF)
        ctx.notes, out_RF = notes, both_RF.new_empty(len(both_RF), both_RF.shape[1] // 2)
        notes.moves(both_RF, out_RF, share=notes.used)
        return out_RF

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (both_RF,) = ctx.saved_tensors
        d_both_RF = torch.empty_like(both_RF)
        ctx.notes.moves(both_RF, grads[0], d_both_RF, share=ctx.notes.used)
        return d_both_RF, None


def attend(
    module: nn.Module,
    q_BNSD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    mask: Tensor | None = None,
    **facts: Any,
) -> tuple[Tensor, None]:
    """The operator of FlashAttention-4 itself, which knows the shapes of what it gives; other flash kernels keep the
    same."""
    S, D, Dv = q_BNSD.shape[2], q_BNSD.shape[3], v_BKSD.shape[3]
    wide = max(D, Dv) if Dv > D or (Dv < D and q_BNSD.shape[1] != v_BKSD.shape[1]) else 0
    dims = round_dim(max(D, wide)), round_dim(max(Dv, wide))
    padded = ((q_BNSD, dims[0]), (k_BKSD, dims[0]), (v_BKSD, dims[1]))
    q, k, v = ((F.pad(x, (0, dim - x.shape[-1])) if x.shape[-1] < dim else x).transpose(1, 2) for x, dim in padded)
    window = facts.get("sliding_window")
    causal = bool(getattr(module, "is_causal", True) if facts.get("is_causal") is None else facts["is_causal"])
    sink_N = facts.get("s_aux")
    out, _ = fa4_forward(q, k, v, None, S, 1.0, causal, window, None if causal else window, None, sink_N)
    return out[..., :Dv], None
