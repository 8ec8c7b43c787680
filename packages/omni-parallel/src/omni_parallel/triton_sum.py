# ruff: noqa: ANN001, ANN202, PLR0917 A kernel is called by position, with pointers that have no type in Python.
"""The kernel that adds what ranks have sent: each part is read once, widened, and the sum written once.

Written in Triton (Tillet et al., 2019), which comes with torch for CUDA. `omni_parallel.narrow` says what it computes.
"""

import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

_BLOCK = 2048


def sum_ranks_(total_n: Tensor, received_Pn: Tensor, own_n: Tensor, rank: int) -> Tensor:
    """Fill `total_n` with the sum over ranks, all contiguous, of `received_Pn`, where `own_n` stands for row `rank`."""
    P, n = received_Pn.shape
    if n:
        _sum_ranks[(triton.cdiv(n, _BLOCK),)](total_n, received_Pn, own_n, n, rank, P, _BLOCK, num_warps=8)
        increment_version(total_n)
    return total_n


@triton.jit
def _sum_ranks(total, received, own, n, RANK: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < n
    row = tl.cast(n, tl.int64)
    added = tl.zeros((BLOCK,), dtype=total.dtype.element_ty)
    for peer in tl.static_range(P):
        if peer == RANK:
            added += tl.load(own + places, mask=inside, other=0).to(added.dtype)
        else:
            added += tl.load(received + peer * row + places, mask=inside, other=0).to(added.dtype)
    tl.store(total + places, added, mask=inside)
