"""act(gate) * up, the gate of an MLP between its products (Shazeer, 2020, arXiv:2002.05202).

One kernel each way on a GPU with Triton, rounded once; torch's operators elsewhere.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from omni_models.rows import fuses


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    if _fits(gate, up):
        return ActMul.apply(gate, up, False)  # pyright: ignore[reportReturnType]
    return F.silu(gate) * up


def gelu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate, approximate="tanh") * up."""
    if _fits(gate, up):
        return ActMul.apply(gate, up, True)  # pyright: ignore[reportReturnType]
    return F.gelu(gate, approximate="tanh") * up


class ActMul(torch.autograd.Function):
    """(gate, up, whether by GELU) -> act(gate) * up, by kernels."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
        from omni_models import triton_gated

        ctx.save_for_backward(gate, up)
        ctx.gelu = gelu
        return triton_gated.act_mul(gate, up, gelu=gelu)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        from omni_models import triton_gated

        return *triton_gated.grad_act_mul(grads[0], *ctx.saved_tensors, gelu=ctx.gelu), None


def _fits(gate: Tensor, up: Tensor) -> bool:
    return fuses(gate) and (gate.shape, gate.dtype, gate.device) == (up.shape, up.dtype, up.device)
