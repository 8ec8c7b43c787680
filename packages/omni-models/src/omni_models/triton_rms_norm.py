# ruff: noqa: ANN001, ANN202, PLR0917 A kernel is called by position, with pointers that have no type in Python.
"""Kernels of the RMS norm: forward and backward each one pass over the rows, sums in fp32 and in a fixed order.

Written in Triton (Tillet et al., 2019), which comes with torch for CUDA. Keeping one number a row for the backward
pass, and partial sums of the weight's gradient by program, is from Liger (Hsu et al., 2024, arXiv:2410.10989).
`omni_models.rms_norm` says what they compute.

A tile is one long row or several short ones, 16 values a thread. In the backward pass a program has a block of rows and
asks for the next tile while it computes with the present one; there are as many programs as the GPU holds at once.

Dimensions: R rows, H features, P programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048
"""The least number of values in a tile."""
_RESIDENT = 8192
"""How many values in tiles a multiprocessor holds at once in the backward pass, with 128 registers a thread."""
_PREFETCH = 8192
"""The largest tile of which the next one fits into registers, too."""


def rms_norm(x_RH: Tensor, weight_H: Tensor, eps: float, offset: float, *, narrow: bool) -> tuple[Tensor, Tensor]:
    """x * rsqrt(mean(x^2) + eps) * (offset + weight), contiguous and of the dtype of x, and the rsqrt, (R,) fp32.

    Args:
        x_RH: rows of neighbouring features, any distance apart.
        weight_H: contiguous.
        eps: for the mean of squares.
        offset: 0 or 1.
        narrow: whether the normalised x is rounded to its dtype before it is multiplied.
    """
    R, H = x_RH.shape
    out_RH, rstd_R = x_RH.new_empty(R, H), x_RH.new_empty(R, dtype=torch.float32)
    rows, block, warps = _plan(H)
    if out_RH.numel():
        grid = (triton.cdiv(R, rows),)
        step = x_RH.stride(0)
        _rms_norm[grid](out_RH, rstd_R, x_RH, weight_H, step, R, eps, H, offset, narrow, rows, block, num_warps=warps)
    return out_RH, rstd_R


def grad_rms_norm(
    d_out_RH: Tensor, x_RH: Tensor, weight_H: Tensor, rstd_R: Tensor, offset: float, *, narrow: bool, weigh: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of x, contiguous, and of the weight if `weigh`. Both inputs are rows of neighbouring features."""
    R, H = x_RH.shape
    d_x_RH = x_RH.new_empty(R, H)
    rows, block, warps = _plan(H)
    tiles = triton.cdiv(R, rows)
    each = max(1, triton.cdiv(tiles, _count_multiprocessors(x_RH) * max(1, _RESIDENT // (rows * block))))
    P = triton.cdiv(tiles, each)
    parts_PH = x_RH.new_empty(P if weigh else 1, H, dtype=torch.float32)
    if d_x_RH.numel():
        _grad_rms_norm[(P,)](
            d_x_RH,
            parts_PH,
            d_out_RH,
            x_RH,
            weight_H,
            rstd_R,
            d_out_RH.stride(0),
            x_RH.stride(0),
            R,
            each,
            H,
            offset,
            narrow,
            weigh,
            rows * block <= _PREFETCH,
            rows,
            block,
            num_warps=warps,
        )
    return d_x_RH, parts_PH.sum(0).to(weight_H.dtype) if weigh else None


def _plan(H: int) -> tuple[int, int, int]:
    """Rows of a tile, the width set aside for each, and warps."""
    block = triton.next_power_of_2(H)
    rows = max(1, _TILE // block)
    return rows, block, min(32, max(4, rows * block // 512))


def _count_multiprocessors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2


@triton.jit
def _scale(weight, column, H: tl.constexpr, OFFSET: tl.constexpr, NARROW: tl.constexpr):
    """What the normalised rows are multiplied by, in fp32; rounded as torch does it where that is done narrowly."""
    scale = OFFSET + tl.load(weight + column, mask=column < H, other=0).to(tl.float32)
    if NARROW:
        scale = scale.to(weight.dtype.element_ty).to(tl.float32)
    return scale


@triton.jit
def _rms_norm(
    out,
    rstd,
    x,
    weight,
    step,
    R,
    eps,
    H: tl.constexpr,
    OFFSET: tl.constexpr,
    NARROW: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < R)[:, None] & (column < H)
    values = tl.load(x + row[:, None] * step + column, mask=inside, other=0).to(tl.float32)
    rstds = tl.rsqrt(tl.sum(values * values, axis=1) / H + eps)
    normed = values * rstds[:, None]
    dtype = out.dtype.element_ty
    if NARROW:
        normed = normed.to(dtype).to(tl.float32)
    tl.store(rstd + row, rstds, mask=row < R)
    tl.store(out + row[:, None] * H + column, (normed * _scale(weight, column, H, OFFSET, NARROW)).to(dtype), inside)


@triton.jit
def _grad_rms_norm(
    d_x,
    parts,
    d_out,
    x,
    weight,
    rstd,
    d_step,
    step,
    R,
    TILES,
    H: tl.constexpr,
    OFFSET: tl.constexpr,
    NARROW: tl.constexpr,
    WEIGH: tl.constexpr,
    PREFETCH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row = program * TILES * ROWS + tl.arange(0, ROWS)
    end = tl.minimum((program + 1) * TILES * ROWS, R)
    column = tl.arange(0, BLOCK)[None, :]
    scale = _scale(weight, column, H, OFFSET, NARROW)
    total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    dtype = d_x.dtype.element_ty
    inside = (row < end)[:, None] & (column < H)
    if PREFETCH:
        next_x = tl.load(x + row[:, None] * step + column, mask=inside, other=0)
        next_d_out = tl.load(d_out + row[:, None] * d_step + column, mask=inside, other=0)
        next_rstd = tl.load(rstd + row, mask=row < end, other=0)
    for _ in range(TILES):
        inside = (row < end)[:, None] & (column < H)
        if PREFETCH:
            values, d_outs, rstds = next_x, next_d_out, next_rstd
            later = row + ROWS
            due = (later < end)[:, None] & (column < H)
            next_x = tl.load(x + later[:, None] * step + column, mask=due, other=0)
            next_d_out = tl.load(d_out + later[:, None] * d_step + column, mask=due, other=0)
            next_rstd = tl.load(rstd + later, mask=later < end, other=0)
        else:
            values = tl.load(x + row[:, None] * step + column, mask=inside, other=0)
            d_outs = tl.load(d_out + row[:, None] * d_step + column, mask=inside, other=0)
            rstds = tl.load(rstd + row, mask=row < end, other=0)
        normed = values.to(tl.float32) * rstds[:, None]
        d_outs = d_outs.to(tl.float32)
        d_normed = d_outs * scale
        mean = tl.sum(normed * d_normed, axis=1) / H
        d_values = (d_normed - normed * mean[:, None]) * rstds[:, None]
        tl.store(d_x + row[:, None] * H + column, d_values.to(dtype), mask=inside)
        if WEIGH:
            total += d_outs * (normed.to(dtype).to(tl.float32) if NARROW else normed)
        row += ROWS
    if WEIGH:
        sums = tl.sum(total, axis=0)
        tl.store(parts + program * H + tl.arange(0, BLOCK), sums, mask=tl.arange(0, BLOCK) < H)
