"""Liger's fused functions, made safe (Hsu et al., 2024, arXiv:2410.10989); its patches of models are not used.

No kernel writes where another may read: Liger's own functions turn queries and keys in place, and write gradients over
the inputs. A recomputed block that keeps the output of its projections would then turn them twice.

Dimensions: B rows, S tokens a row, N query heads, K key heads, D head dim, R width of the position tables, H features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from omni_models.rows import silu_halves

INSTALL = "uv sync --all-packages --extra liger"
"""What puts Liger there."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The fused functions. None of them writes into its arguments, nor its backward into what it was given.

    Attributes:
        rms_norm: (x (..., H), weight_H, eps, offset, casting) -> x * rsqrt(mean(x^2) + eps) * (offset + weight), the
            sum in fp32. Casting "llama" multiplies after the cast to the dtype of x, "gemma" before it.
        silu_mul: (gate, up) -> silu(gate) * up.
        gelu_mul: (gate, up) -> gelu(gate, approximate="tanh") * up.
        rope: (q_BNSD, k_BKSD, cos, sin, width) -> (q_BNSD, k_BKSD), of which the first `width` features are turned.
            Tables are (1 or B, S, R) of the dtype of q; their first width/2 columns count.
        silu_halves: (R, 2F) -> (R, F), silu of the first half of the features times the second: see `omni_models.rows`.
    """

    rms_norm: Callable[[Tensor, Tensor, float, float, str], Tensor]
    silu_mul: Callable[[Tensor, Tensor], Tensor]
    gelu_mul: Callable[[Tensor, Tensor], Tensor]
    rope: Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
    silu_halves: Callable[[Tensor], Tensor]


def has_liger() -> bool:
    """Whether Liger is installed. Looks for its files and imports nothing."""
    return find_spec("liger_kernel") is not None


class GatedMul(torch.autograd.Function):
    """act(gate) * up by Liger's two passes, of which the second writes where it reads: it is given copies."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, run: Callable[..., Any], differentiate: Callable[..., Any]) -> Any:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.differentiate = differentiate
        return run(gate, up)[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] Decorated.
        (dout,) = grad_outputs
        gate, up = ctx.saved_tensors
        return *ctx.differentiate(gate.clone(), up.clone(), dout.contiguous()), None, None


class Rotate(torch.autograd.Function):
    """Queries and keys, turned by Liger's two passes, which write where they read: both are given copies."""

    @staticmethod
    def forward(  # noqa: PLR0917 Autograd hands arguments on by position.
        ctx: Any,
        q_BNSD: Tensor,
        k_BKSD: Tensor,
        cos: Tensor,
        sin: Tensor,
        width: int,
        run: Callable[..., Any],
        differentiate: Callable[..., Any],
    ) -> Any:
        q, k, cos, sin = run(_copy_tokens_first(q_BNSD), _copy_tokens_first(k_BKSD), cos, sin, None, 1, width)
        ctx.save_for_backward(cos, sin)
        ctx.width, ctx.differentiate = width, differentiate
        return q, k

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] Decorated.
        cos, sin = ctx.saved_tensors
        dq, dk = map(_copy_tokens_first, grad_outputs)
        return *ctx.differentiate(dq, dk, cos, sin, None, 1, ctx.width), *(None,) * 5


def _copy_tokens_first(x_BNSD: Tensor) -> Tensor:
    """A copy whose memory is (B, S, N, D), which is how Liger reads it."""
    return x_BNSD.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)


def make_liger() -> Kernels:
    """Liger's kernels, imported now because they bring a compiler along.

    Raises:
        ValueError: if they cannot be imported.
    """
    try:
        from liger_kernel.ops.geglu import geglu_backward, geglu_forward  # pyright: ignore[reportMissingImports]
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # pyright: ignore[reportMissingImports]
        from liger_kernel.ops.rope import rope_backward, rope_forward  # pyright: ignore[reportMissingImports]
        from liger_kernel.ops.swiglu import swiglu_backward, swiglu_forward  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"fused kernels need liger-kernel 0.8.5 or newer ({error}): {INSTALL}.") from error

    def rms_norm(x: Tensor, weight_H: Tensor, eps: float, offset: float, casting: str) -> Tensor:
        # In place, it would write over a gradient that a residual connection hands to others too.
        return LigerRMSNormFunction.apply(x, weight_H, eps, offset, casting, False)

    return Kernels(
        rms_norm,
        lambda gate, up: GatedMul.apply(gate, up, swiglu_forward, swiglu_backward),
        lambda gate, up: GatedMul.apply(gate, up, geglu_forward, geglu_backward),
        lambda q, k, cos, sin, width: Rotate.apply(q, k, cos, sin, width, rope_forward, rope_backward),
        silu_halves,
    )
