# ruff: noqa: ANN001, ANN202, PLR0917 A kernel is called by position, with pointers that have no type in Python.
"""The kernel of AdamW: parameter, moments and gradient are read once, and all but the gradient written once.

Written in Triton (Tillet et al., 2019), which comes with torch for CUDA.
"""

import triton
import triton.language as tl
from torch import Tensor

from omni_parallel.rounding import Throw

_BLOCK = 1024


def update_(
    param: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    correction: Tensor,
    cast: Tensor | None,
    scale: Tensor | None,
    throw: Throw,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Move `param` (contiguous, fp32) and its moments (contiguous, fp32 or bf16) by `grad` (contiguous, any float
    dtype) times `scale`.

    Args:
        param: any shape.
        grad: of the same shape.
        first: the mean of gradients.
        second: the mean of their squares, in the dtype of `first`.
        correction: what the two are divided by, of the second the root: (2,) fp32, see `adamw.correct`.
        cast: contiguous, of the same shape and any float dtype: becomes what `param` does; None for none.
        scale: fp32 scalar on the device; None for one. If it is nan, nothing changes; `cast` is made all the same.
        throw: which dice moments in bf16 are rounded by, as by `rounding.round_moments`.
        lr: learning rate.
        beta1: decay of the first mean.
        beta2: decay of the second.
        eps: added to the root of the second.
        weight_decay: times `lr`, what is taken from the parameter first.
    """
    N = param.numel()
    dice = (throw.steps, throw.param, throw.shard, throw.start)
    settings = (lr, 1 - lr * weight_decay, 1 - beta1, 1 - beta2, eps)
    if N:
        grid = (triton.cdiv(N, _BLOCK),)
        _adamw[grid](param, grad, first, second, correction, cast, scale, *dice, N, *settings, _BLOCK, num_warps=8)


@triton.jit(do_not_specialize=["number", "shard", "start"])
def _adamw(
    param, grad, first, second, correction, cast, scale,
    steps, number, shard, start,
    N, lr, keep, new1, new2, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < N
    correct1 = tl.load(correction)
    correct2 = tl.load(correction + 1)
    g = tl.load(grad + places, mask=inside, other=0).to(tl.float32)
    if scale is not None:
        factors = tl.zeros([BLOCK], tl.float32) + tl.load(scale)
        g *= factors
    old_m = tl.load(first + places, mask=inside, other=0)
    old_v = tl.load(second + places, mask=inside, other=0)
    old_p = tl.load(param + places, mask=inside, other=0)
    m = old_m.to(tl.float32)
    v = old_v.to(tl.float32)
    m += (g - m) * new1
    v += (g * g - v) * new2
    p = old_p * keep - lr / correct1 * (m / (tl.sqrt(v) / correct2 + eps))
    if first.dtype.element_ty == tl.bfloat16:
        words = _throw(tl.load(steps), number, shard, start, BLOCK)
        m = _round(m, words & 0xFFFF)
        v = _round(v, words >> 16)
    if scale is not None:
        # What does not change is written, too: stores under a mask that is not known before are not made together.
        fine = factors == factors  # noqa: PLR0124  Which nan is not.
        m, v, p = tl.where(fine, m, old_m), tl.where(fine, v, old_v), tl.where(fine, p, old_p)
    tl.store(first + places, m, mask=inside)
    tl.store(second + places, v, mask=inside)
    tl.store(param + places, p, mask=inside)
    if cast is not None:
        tl.store(cast + places, p.to(cast.dtype.element_ty), mask=inside)


@triton.jit
def _throw(step, number, shard, start, BLOCK: tl.constexpr):
    """See `rounding.throw`: four words of one counter for four numbers side by side, which a thread has together."""
    first = start // 4 + tl.program_id(0).to(tl.int64) * (BLOCK // 4)
    fours = first + tl.arange(0, BLOCK // 4)
    low = fours.to(tl.uint32)
    rest = tl.zeros_like(low)
    key = number.to(tl.uint64) << 32 | step.to(tl.uint64)
    a, b, c, d = tl.philox(key, low, (fours >> 32).to(tl.uint32), rest + shard.to(tl.uint32), rest)
    return tl.join(tl.join(a, c), tl.join(b, d)).reshape(BLOCK)


@triton.jit
def _round(x, bits):
    """See `rounding.round_by`."""
    rounded = ((x.to(tl.uint32, bitcast=True) + bits) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where(x == x, rounded, x).to(tl.bfloat16)  # noqa: PLR0124  Which nan is not.
