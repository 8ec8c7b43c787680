# ruff: noqa: ANN001, ANN202 A kernel is called with pointers that have no type in Python.
"""The kernel of the gradient norm: squares are summed in fp32 in a fixed order, at the speed of memory.

torch's own operator reads gradients in bf16 at half that speed. Written in Triton (Tillet et al., 2019), which comes
with torch for CUDA.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048
_PROGRAMS = 1024


def square_sum(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of the squares of all elements (scalar, fp32), of contiguous tensors of any float dtype on one device."""
    sums = torch.empty(len(tensors), _PROGRAMS, dtype=torch.float32, device=tensors[0].device)
    for tensor, own in zip(tensors, sums, strict=True):
        _square_sum[(_PROGRAMS,)](own, tensor, tensor.numel(), _PROGRAMS, _BLOCK, num_warps=8)
    return sums.sum()


@triton.jit
def _square_sum(sums, x, N, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(program * BLOCK, N, PROGRAMS * BLOCK):
        places = start + tl.arange(0, BLOCK)
        values = tl.load(x + places, mask=places < N, other=0).to(tl.float32)
        total += values * values
    tl.store(sums + program, tl.sum(total))
