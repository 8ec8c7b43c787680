"""The fused functions of a model, together. Each is in a file of its own."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from omni_models.gated import gelu_mul, silu_mul
from omni_models.rms_norm import rms_norm
from omni_models.rotate import rotate
from omni_models.rows import silu_halves


@dataclass(frozen=True, slots=True)
class Kernels:
    """The fused functions. None of them writes into its arguments, nor its backward into what it was given.

    For a block that is computed again may read the output of a projection twice, and a gradient may be another's, too.

    Attributes:
        rms_norm: (x (..., H), weight_H, eps, offset, casting) -> x * rsqrt(mean(x^2) + eps) * (offset + weight), the
            sum in fp32. Casting "llama" multiplies after the cast to the dtype of x, "gemma" before it.
        silu_mul: (gate, up) -> silu(gate) * up.
        gelu_mul: (gate, up) -> gelu(gate, approximate="tanh") * up.
        rope: (q_BNSD, k_BKSD, cos, sin, width) -> (q_BNSD, k_BKSD), of which the first `width` features are turned.
            Tables are (1 or B, S, R) of the dtype of q or wider; their first width/2 columns count.
        silu_halves: (R, 2F) -> (R, F), silu of the first half of the features times the second: see `omni_models.rows`.
    """

    rms_norm: Callable[[Tensor, Tensor, float, float, str], Tensor]
    silu_mul: Callable[[Tensor, Tensor], Tensor]
    gelu_mul: Callable[[Tensor, Tensor], Tensor]
    rope: Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
    silu_halves: Callable[[Tensor], Tensor]


def make_triton() -> Kernels:
    """Kernels written in Triton, for tensors on a GPU; others are left to torch. Imports no compiler yet."""
    return Kernels(rms_norm, silu_mul, gelu_mul, rotate, silu_halves)
