# ruff: noqa: ANN001, ANN202, PLR0917 A kernel is called by position, with pointers that have no type in Python.
"""Kernels that put a tensor into 8 bits: one finds its largest magnitude, one writes it, as it is and transposed.

Written in Triton (Tillet et al., 2019), which comes with torch for CUDA. `omni_parallel.fp8` says what they compute.

Dimensions: T tokens, K features, P = T up to the next multiple of 16, R programs that look for the largest.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from omni_parallel.fp8 import ALIGNED, LEAST

_LOOKING = 512
"""Programs that look for the largest at most, about as many as an H100 or H200 runs at once."""
_BLOCK = 8192
_TILE_T, _TILE_K = 128, 64
"""With eight warps small enough for three of them at once, and stores of whole sectors both ways."""


def quantize(
    x_TK: Tensor, dtype: torch.dtype, rows: bool, turned: bool, step: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """`x_TK` (contiguous, not empty) in `dtype`, also transposed with zeros up to P tokens, and what 1 stands for.

    Args:
        x_TK: bf16, fp16 or fp32.
        dtype: an 8-bit float.
        rows: whether the first is wanted; None comes back if not.
        turned: whether the second is.
        step: what 1 shall stand for (fp32 scalar on the device); None to make the largest magnitude the largest of
            `dtype`.
    """
    T, K = x_TK.shape
    P = triton.cdiv(T, ALIGNED) * ALIGNED
    rows_TK = x_TK.new_empty(T, K, dtype=dtype) if rows else None
    turned_KP = x_TK.new_empty(K, P, dtype=dtype) if turned else None
    largest_R, R = None, 0
    if step is None:
        R = min(_LOOKING, triton.cdiv(T * K, _BLOCK))
        largest_R = x_TK.new_empty(R, dtype=torch.int32)
        step = x_TK.new_empty((), dtype=torch.float32)
        _largest[(R,)](largest_R, x_TK, T * K, _BLOCK, num_warps=8)
    grid = (triton.cdiv(P, _TILE_T), triton.cdiv(K, _TILE_K))
    most = torch.finfo(dtype).max
    tensors, sizes = (rows_TK, turned_KP, step, largest_R, x_TK), (T, K, P, R)
    _quantize[grid](*tensors, *sizes, most, LEAST, _LOOKING, _TILE_T, _TILE_K, num_warps=8)
    return rows_TK, turned_KP, step


@triton.jit
def _largest(largest, x, N, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    most = tl.zeros((BLOCK,), tl.int32)
    for start in range(program.to(tl.int64) * BLOCK, N, tl.num_programs(0) * BLOCK):
        places = start + tl.arange(0, BLOCK)
        values = tl.load(x + places, mask=places < N, other=0).to(tl.float32)
        # Without their sign floats are in the order of their bits, and nan is above all, which a maximum would drop.
        most = tl.maximum(most, values.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    tl.store(largest + program, tl.max(most))


@triton.jit
def _quantize(
    rows,
    turned,
    step,
    largest,
    x,
    T,
    K,
    P,
    R,
    MOST: tl.constexpr,
    LEAST: tl.constexpr,
    LOOKING: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_K: tl.constexpr,
):
    # Where the tile begins may be beyond 32 bits, what is in it is not, and half as wide in registers.
    first_token, first_feature = tl.program_id(0).to(tl.int64) * TILE_T, tl.program_id(1) * TILE_K
    token, feature = tl.arange(0, TILE_T)[:, None], tl.arange(0, TILE_K)[None, :]
    held = feature < K - first_feature
    inside = (token < T - first_token) & held
    corner, places = first_token * K + first_feature, token * K + feature
    # Asked for before the scale, which takes a while to find.
    values = tl.load(x + corner + places, mask=inside, other=0).to(tl.float32)
    if largest is None:
        unit = tl.load(step)
    else:
        found = tl.arange(0, LOOKING)
        bits = tl.max(tl.load(largest + found, mask=found < R, other=0))
        whole = bits.to(tl.float32, bitcast=True)
        unit = tl.where(bits == 0, 1.0, tl.div_rn(tl.maximum(whole, LEAST), MOST))
        # From the bits of infinity on.
        unit = tl.where(bits >= 0x7F800000, float("nan"), unit)
        if tl.program_id(0) + tl.program_id(1) == 0:
            tl.store(step, unit)
    values = tl.clamp(values * tl.div_rn(1.0, unit), -MOST, MOST, propagate_nan=tl.PropagateNan.ALL)
    if rows is not None:
        tl.store(rows + corner + places, values.to(rows.dtype.element_ty), mask=inside)
    if turned is not None:
        corner_KP, places_KP = first_feature.to(tl.int64) * P + first_token, feature * P + token
        padded = (token < P - first_token) & held
        tl.store(turned + corner_KP + places_KP, values.to(turned.dtype.element_ty), mask=padded)
