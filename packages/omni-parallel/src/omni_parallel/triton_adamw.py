# ruff: noqa: ANN001, ANN202, PLR0917 A kernel is called by position, with pointers that have no type in Python.
"""The kernel of AdamW: parameter, moments and gradient are read once, and all but the gradient written once.

It takes all parameters whose tensors have the same dtypes: a table has their addresses, and a list says for each span
of numbers whose it is. Written in Triton (Tillet et al., 2019), which comes with torch for CUDA.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from omni_parallel.adamw import Held
from omni_parallel.triton_table import address, are_aligned, kind_of, make_table

_BLOCK = 1024
_SPAN = 16
"""Blocks of a span: the list is that much shorter."""


def update_(
    held: Sequence[Held],
    corrections: Tensor,
    scale: Tensor | None,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Move the parameters of `held` (contiguous, fp32) and their moments (contiguous, fp32 or bf16) by their gradients
    (contiguous, any float dtype) times `scale`, all on one device; casts become what parameters do.

    Args:
        held: steps are counted in fp32; moments in bf16 are rounded by their dice, as by `rounding.round_moments`.
        corrections: what moments of each are divided by, of the second the root: (len(held), 2) fp32, contiguous, see
            `adamw.correct`.
        scale: fp32 scalar on the device; None for one. If it is nan, nothing changes but casts, which are made all the
            same.
        lr: learning rate.
        betas: decay of the two means.
        eps: added to the root of the second.
        weight_decay: times `lr`, what is taken from a parameter first.
    """
    settings = (lr, 1 - lr * weight_decay, 1 - betas[0], 1 - betas[1], eps)
    alike: dict[Any, list[list[int]]] = defaultdict(list)
    for number, own in enumerate(held):
        tensors = (own.param, own.grad, own.first, own.second, own.cast)
        places = [address(x) for x in tensors]
        kinds = tuple(None if x is None else x.dtype for x in tensors[1:])
        dice = (address(own.throw.steps), own.throw.param, own.throw.shard, own.throw.start)
        if numbers := own.param.numel():
            alike[kinds, are_aligned(places)].append([*places, *dice, number, numbers])
    for ((grad, moment, _, cast), aligned), rows in alike.items():
        spans = [-(-row[-1] // (_BLOCK * _SPAN)) for row in rows]
        starts = accumulate(spans, initial=0)
        whole = [[*row, start, count] for row, start, count in zip(rows, starts, spans, strict=False)]
        table = make_table(whole, corrections.device)
        whose = torch.repeat_interleave(table[:, -1], output_size=sum(spans))
        kinds = (kind_of(grad), kind_of(moment), kind_of(cast))
        sizes = (aligned, len(whole[0]), _SPAN, _BLOCK)
        _adamw[sum(spans) * _SPAN,](table, whose, corrections, scale, *settings, *kinds, *sizes, num_warps=8)


@triton.jit
def _adamw(
    table, whose, corrections, scale, lr, keep, new1, new2, eps,
    GRAD: tl.constexpr, MOMENT: tl.constexpr, CAST: tl.constexpr,
    ALIGNED: tl.constexpr, COLUMNS: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    span = tl.program_id(0) // SPAN
    own = table + tl.load(whose + span) * COLUMNS
    N = tl.load(own + 10)
    block = (span - tl.load(own + 11)) * SPAN + tl.program_id(0) % SPAN
    settings = (lr, keep, new1, new2, eps)
    # Under a mask that is not known before numbers are not moved together.
    if block * BLOCK + BLOCK <= N:
        _move(own, block, None, corrections, scale, settings, GRAD, MOMENT, CAST, ALIGNED, BLOCK)
    elif block * BLOCK < N:
        inside = block * BLOCK + tl.arange(0, BLOCK) < N
        _move(own, block, inside, corrections, scale, settings, GRAD, MOMENT, CAST, ALIGNED, BLOCK)


@triton.jit
def _move(
    own, block, inside, corrections, scale, settings,
    GRAD: tl.constexpr, MOMENT: tl.constexpr, CAST: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lr, keep, new1, new2, eps = settings
    params = _find(own, block, tl.float32, ALIGNED, BLOCK)
    grads = _find(own + 1, block, GRAD, ALIGNED, BLOCK)
    firsts = _find(own + 2, block, MOMENT, ALIGNED, BLOCK)
    seconds = _find(own + 3, block, MOMENT, ALIGNED, BLOCK)
    correction = corrections + tl.load(own + 9) * 2
    correct1 = tl.load(correction)
    correct2 = tl.load(correction + 1)
    g = tl.load(grads, mask=inside).to(tl.float32)
    if scale is not None:
        factors = tl.zeros([BLOCK], tl.float32) + tl.load(scale)
        g *= factors
    old_m = tl.load(firsts, mask=inside)
    old_v = tl.load(seconds, mask=inside)
    old_p = tl.load(params, mask=inside)
    m = old_m.to(tl.float32)
    v = old_v.to(tl.float32)
    m += (g - m) * new1
    v += (g * g - v) * new2
    p = old_p * keep - lr / correct1 * (m / (tl.sqrt(v) / correct2 + eps))
    if tl.bfloat16 == MOMENT:
        words = _throw(own, block, BLOCK)
        m = _round(m, words & 0xFFFF)
        v = _round(v, words >> 16)
    if scale is not None:
        # What does not change is written, too: stores under a mask that is not known before are not made together.
        fine = factors == factors  # noqa: PLR0124  Which nan is not.
        m, v, p = tl.where(fine, m, old_m), tl.where(fine, v, old_v), tl.where(fine, p, old_p)
    tl.store(firsts, m, mask=inside)
    tl.store(seconds, v, mask=inside)
    tl.store(params, p, mask=inside)
    if CAST is not None:
        tl.store(_find(own + 4, block, CAST, ALIGNED, BLOCK), p.to(CAST), mask=inside)


@triton.jit
def _find(entry, block, KIND: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Where the numbers of a block of a tensor are, which begins where `entry` says."""
    places = tl.load(entry).to(tl.pointer_type(KIND)) + block * BLOCK + tl.arange(0, BLOCK)
    return tl.multiple_of(places, 16) if ALIGNED else places


@triton.jit
def _throw(own, block, BLOCK: tl.constexpr):
    """See `rounding.throw`: four words of one counter for four numbers side by side, which a thread has together."""
    step = tl.load(tl.load(own + 5).to(tl.pointer_type(tl.float32)))
    number = tl.load(own + 6)
    shard = tl.load(own + 7)
    fours = tl.load(own + 8) // 4 + block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
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
