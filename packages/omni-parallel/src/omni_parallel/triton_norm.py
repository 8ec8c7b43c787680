# ruff: noqa: ANN001, ANN202, PLR0917 A kernel is called by position, with pointers that have no type in Python.
"""The kernel of the gradient norm: squares are summed in fp32 in a fixed order, at the speed of memory.

torch's own operator reads gradients in bf16 at half that speed. Written in Triton (Tillet et al., 2019), which comes
with torch for CUDA.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from omni_parallel.triton_table import are_aligned, kind_of, make_table

_BLOCK = 2048
_PROGRAMS = 1024


def square_sum(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of the squares of all elements (scalar, fp32), of contiguous tensors of any float dtype on one device.

    One launch for all tensors of a dtype.
    """
    device = tensors[0].device
    sums = torch.empty(len(tensors), _PROGRAMS, dtype=torch.float32, device=device)
    alike: dict[Any, list[tuple[int, int, int]]] = defaultdict(list)
    for row, x in enumerate(tensors):
        place = x.data_ptr()
        alike[x.dtype, are_aligned([place])].append((place, x.numel(), row))
    for (dtype, aligned), rows in alike.items():
        sizes = (aligned, _PROGRAMS, _BLOCK)
        _square_sum[len(rows) * _PROGRAMS,](sums, make_table(rows, device), kind_of(dtype), *sizes, num_warps=8)
    return sums.sum()


@triton.jit
def _square_sum(
    sums, table, KIND: tl.constexpr, ALIGNED: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    own = table + tl.program_id(0) // PROGRAMS * 3
    program = (tl.program_id(0) % PROGRAMS).to(tl.int64)
    x = tl.load(own).to(tl.pointer_type(KIND))
    N = tl.load(own + 1)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    whole = N // BLOCK
    # Under a mask that is not known before numbers are not loaded together.
    for block in range(program, whole, PROGRAMS):
        places = x + block * BLOCK + tl.arange(0, BLOCK)
        if ALIGNED:
            places = tl.multiple_of(places, 16)
        values = tl.load(places).to(tl.float32)
        total += values * values
    if whole % PROGRAMS == program:
        places = whole * BLOCK + tl.arange(0, BLOCK)
        values = tl.load(x + places, mask=places < N, other=0).to(tl.float32)
        total += values * values
    tl.store(sums + tl.load(own + 2) * PROGRAMS + program, tl.sum(total))
