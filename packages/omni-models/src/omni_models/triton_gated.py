# ruff: noqa: ANN001, ANN202, PLR0917 A kernel is called by position, with pointers that have no type in Python.
"""Kernels of gating: act(gate) * up and its gradient, each one pass over memory, in fp32 and rounded once.

Written in Triton (Tillet et al., 2019), which comes with torch for CUDA. One pass instead of one for each operator, and
nothing kept but the inputs, is from Liger (Hsu et al., 2024, arXiv:2410.10989). `omni_models.gated` says what they
compute.

A program has 1,024 values, a thread eight: 16 bytes of bf16 or fp16, the most that one instruction loads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_WARPS = 4


def act_mul(gate: Tensor, up: Tensor, *, gelu: bool) -> Tensor:
    """act(gate) * up, contiguous; both of one shape and dtype."""
    out = torch.empty_like(gate, memory_format=torch.contiguous_format)
    if size := out.numel():
        grid = (triton.cdiv(size, _BLOCK),)
        _act_mul[grid](out, gate.contiguous(), up.contiguous(), size, gelu, _BLOCK, num_warps=_WARPS)
    return out


def grad_act_mul(d_out: Tensor, gate: Tensor, up: Tensor, *, gelu: bool) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up, contiguous."""
    d_gate, d_up = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (gate, up))
    if size := d_gate.numel():
        inputs = (x.contiguous() for x in (d_out, gate, up))
        grid = (triton.cdiv(size, _BLOCK),)
        _grad_act_mul[grid](d_gate, d_up, *inputs, size, gelu, _BLOCK, num_warps=_WARPS)
    return d_gate, d_up


@triton.jit
def _act(gate, GELU: tl.constexpr):
    """What the activation makes of `gate`, and its slope there."""
    if GELU:
        # (1 + tanh(z)) / 2 is sigmoid(2 z); the constants are 2 sqrt(2 / pi), and that times 0.044715.
        square = gate * gate
        share = tl.sigmoid(gate * (1.5957691216057308 + 0.07135481627260025 * square))
        slope = share + gate * share * (1 - share) * (1.5957691216057308 + 0.21406444881780076 * square)
    else:
        share = tl.sigmoid(gate)
        slope = share + gate * share * (1 - share)
    return gate * share, slope


@triton.jit
def _act_mul(out, gate, up, N, GELU: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    places = tl.arange(0, BLOCK)
    inside = places < N - start
    gates = tl.load(gate + start + places, mask=inside, other=0).to(tl.float32)
    ups = tl.load(up + start + places, mask=inside, other=0).to(tl.float32)
    values, _ = _act(gates, GELU)
    tl.store(out + start + places, (values * ups).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _grad_act_mul(d_gate, d_up, d_out, gate, up, N, GELU: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    places = tl.arange(0, BLOCK)
    inside = places < N - start
    gates = tl.load(gate + start + places, mask=inside, other=0).to(tl.float32)
    ups = tl.load(up + start + places, mask=inside, other=0).to(tl.float32)
    d_outs = tl.load(d_out + start + places, mask=inside, other=0).to(tl.float32)
    values, slopes = _act(gates, GELU)
    tl.store(d_gate + start + places, (d_outs * ups * slopes).to(d_gate.dtype.element_ty), mask=inside)
    tl.store(d_up + start + places, (d_outs * values).to(d_up.dtype.element_ty), mask=inside)
