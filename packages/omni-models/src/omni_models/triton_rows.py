# ruff: noqa: ANN001, ANN202, PLR0917 A kernel is called by position, with pointers that have no type in Python.
"""Kernels for rows of experts: each reads what it needs once, sums in fp32 in a fixed order, and writes once.

Written in Triton (Tillet et al., 2019), which comes with torch for CUDA. `omni_models.rows` says what they compute.

`used` is a scalar on the device: rows from there on are neither read nor written, and not worth a wait of the host.

Dimensions: T tokens, K experts a token, R rows set aside, H hidden size, F width of an expert.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def spread(x_TH: Tensor, order_R: Tensor, used: Tensor, choices: int) -> Tensor:
    """(R, H): the token of each row, of which each has so many choices."""
    R, H = len(order_R), x_TH.shape[1]
    rows_RH = x_TH.new_empty(R, H)
    if R:
        _spread[(R,)](rows_RH, x_TH.contiguous(), order_R, used, H, choices, _BLOCK)
    return rows_RH


def sum_rows(rows_RH: Tensor, place_TK: Tensor, used: Tensor, weights_TK: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(T, H) of `dtype`: the rows of each token, weighted and summed in the order of its choices."""
    (T, K), H = place_TK.shape, rows_RH.shape[1]
    out_TH = rows_RH.new_empty(T, H, dtype=dtype)
    grid = (T, triton.cdiv(H, _BLOCK))
    weights = place_TK if weights_TK is None else weights_TK.contiguous()
    _sum_rows[grid](out_TH, rows_RH.contiguous(), place_TK, weights, used, H, K, weights_TK is not None, _BLOCK)
    return out_TH


def grad_rows(
    d_out_TH: Tensor, rows_RH: Tensor, weights_TK: Tensor, order_R: Tensor, used: Tensor, d_weights_TK: Tensor
) -> Tensor:
    """The gradient of the rows of `sum_rows`, (R, H); that of their weights is put into `d_weights_TK`, contiguous.

    Donates `d_weights_TK`.
    """
    (_, K), (R, H) = weights_TK.shape, rows_RH.shape
    d_rows_RH = torch.empty_like(rows_RH, memory_format=torch.contiguous_format)
    inputs = (x.contiguous() for x in (d_out_TH, rows_RH, weights_TK))
    if R:
        _grad_rows[(R,)](d_rows_RH, d_weights_TK, *inputs, order_R, used, H, K, _BLOCK)
    return d_rows_RH


def silu_halves(both_RF: Tensor, used: Tensor | None) -> Tensor:
    """(R, F): silu of the first half of the features of (R, 2F), times the second."""
    R, F = both_RF.shape[0], both_RF.shape[1] // 2
    out_RF = both_RF.new_empty(R, F)
    if R:
        _silu_halves[(R, triton.cdiv(F, _BLOCK))](out_RF, both_RF.contiguous(), used, F, _BLOCK)
    return out_RF


def grad_silu_halves(d_out_RF: Tensor, both_RF: Tensor, used: Tensor | None) -> Tensor:
    """The gradient of `silu_halves`, (R, 2F)."""
    R, F = d_out_RF.shape
    d_both_RF = torch.empty_like(both_RF, memory_format=torch.contiguous_format)
    grid = (R, triton.cdiv(F, _BLOCK))
    if R:
        _grad_silu_halves[grid](d_both_RF, d_out_RF.contiguous(), both_RF.contiguous(), used, F, _BLOCK)
    return d_both_RF


@triton.jit
def _spread(rows, x, order, used, H, K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    width = tl.where(row < tl.load(used), H, 0)
    token = tl.load(order + row) // K
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(x + token * H + columns, mask=columns < width, other=0)
        tl.store(rows + row * H + columns, values, mask=columns < width)


@triton.jit
def _sum_rows(out, rows, place, weights, used, H, K: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < H
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    rows_used = tl.load(used)
    for k in range(K):
        row = tl.load(place + token * K + k)
        width = tl.where(row < rows_used, H, 0)
        values = tl.load(rows + row * H + columns, mask=columns < width, other=0).to(tl.float32)
        if WEIGHTED:
            values *= tl.load(weights + token * K + k).to(tl.float32)
        total += values
    tl.store(out + token * H + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _grad_rows(d_rows, d_weights, d_out, rows, weights, order, used, H, K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    here = row < tl.load(used)
    width = tl.where(here, H, 0)
    choice = tl.load(order + row)
    token = choice // K
    weight = tl.load(weights + choice).to(tl.float32)
    products = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        d_values = tl.load(d_out + token * H + columns, mask=inside, other=0).to(tl.float32)
        values = tl.load(rows + row * H + columns, mask=inside, other=0).to(tl.float32)
        products += d_values * values
        tl.store(d_rows + row * H + columns, (d_values * weight).to(d_rows.dtype.element_ty), mask=inside)
    tl.store(d_weights + choice, tl.sum(products), mask=here)


@triton.jit
def _silu_halves(out, both, used, F, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < (F if used is None else tl.where(row < tl.load(used), F, 0))
    gate = tl.load(both + row * 2 * F + columns, mask=inside, other=0).to(tl.float32)
    up = tl.load(both + row * 2 * F + F + columns, mask=inside, other=0).to(tl.float32)
    value = gate * tl.sigmoid(gate) * up
    tl.store(out + row * F + columns, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _grad_silu_halves(d_both, d_out, both, used, F, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < (F if used is None else tl.where(row < tl.load(used), F, 0))
    gate = tl.load(both + row * 2 * F + columns, mask=inside, other=0).to(tl.float32)
    up = tl.load(both + row * 2 * F + F + columns, mask=inside, other=0).to(tl.float32)
    d_value = tl.load(d_out + row * F + columns, mask=inside, other=0).to(tl.float32)
    share = tl.sigmoid(gate)
    silu = gate * share
    d_gate = d_value * up * (share + silu * (1 - share))
    dtype = d_both.dtype.element_ty
    tl.store(d_both + row * 2 * F + columns, d_gate.to(dtype), mask=inside)
    tl.store(d_both + row * 2 * F + F + columns, (d_value * silu).to(dtype), mask=inside)
