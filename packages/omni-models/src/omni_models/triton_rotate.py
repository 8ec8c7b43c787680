# ruff: noqa: ANN001, ANN202, PLR0917 A kernel is called by position, with pointers that have no type in Python.
"""The kernel that turns queries and keys by their positions: one pass, one launch, read wherever they lie.

Written in Triton (Tillet et al., 2019), which comes with torch for CUDA. Queries and keys in one launch is from Liger
(Hsu et al., 2024, arXiv:2410.10989), which turns them in place; here what comes back is new memory, with the heads of a
token side by side as attention reads them. `omni_models.rotate` says what it computes.

Dimensions: B rows, S tokens a row, N query heads, K key heads, D head dim, R width of the position tables.
"""

import triton
import triton.language as tl
from torch import Tensor

_TILE = 1024
"""Pairs of features of a program: eight a thread, 16 bytes of bf16 or fp16 from each half."""


def rotate(
    q_BNSD: Tensor, k_BKSD: Tensor, cos: Tensor, sin: Tensor, width: int, *, back: bool
) -> tuple[Tensor, Tensor]:
    """The first `width` features of q and k turned by the tables (1 or B, S, R), or turned `back`; the rest copied.

    What comes back lies in memory as (B, S, heads, D).
    """
    q_BNSD, k_BKSD, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_BNSD, k_BKSD, cos, sin))
    (B, N, S, D), K = q_BNSD.shape, k_BKSD.shape[1]
    q_out, k_out = (x.new_empty(B, S, x.shape[1], D).transpose(1, 2) for x in (q_BNSD, k_BKSD))
    pairs = triton.next_power_of_2(width // 2)
    rest = triton.next_power_of_2(max(1, D - width))
    heads = min(max(1, _TILE // max(pairs, rest // 2)), triton.next_power_of_2(max(1, N, K)))
    q_blocks = triton.cdiv(N, heads)
    grid = (B * S, q_blocks + triton.cdiv(K, heads))
    if B * S and N + K:
        _rotate[grid](
            q_out,
            k_out,
            q_BNSD,
            k_BKSD,
            cos,
            sin,
            *q_BNSD.stride()[:3],
            *k_BKSD.stride()[:3],
            *_steps(cos),
            *_steps(sin),
            S,
            N,
            K,
            D,
            width // 2,
            q_blocks,
            back,
            heads,
            pairs,
            rest,
            num_warps=min(4, max(1, heads * max(pairs, rest // 2) // 256)),
            enable_fp_fusion=False,  # Fused with a sum, a product would not be rounded, as it is by transformers.
        )
    return q_out, k_out


def _steps(table: Tensor) -> tuple[int, int]:
    """From one row, and one token, to the next; one table may serve all rows."""
    return (table.stride(0) if table.shape[0] > 1 else 0), table.stride(1)


@triton.jit
def _rotate(
    q_out,
    k_out,
    q,
    k,
    cos,
    sin,
    q_row,
    q_head,
    q_token,
    k_row,
    k_head,
    k_token,
    cos_row,
    cos_token,
    sin_row,
    sin_token,
    S,
    N: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    Q_BLOCKS: tl.constexpr,
    BACK: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    row, token = place // S, place % S
    cos += row * cos_row + token * cos_token
    sin += row * sin_row + token * sin_token
    if block < Q_BLOCKS:
        q += row * q_row + token * q_token
        _turn(q_out + place * N * D, q, q_head, block, cos, sin, N, D, HALF, BACK, HEADS, PAIRS, REST)
    else:
        k += row * k_row + token * k_token
        _turn(k_out + place * K * D, k, k_head, block - Q_BLOCKS, cos, sin, K, D, HALF, BACK, HEADS, PAIRS, REST)


@triton.jit
def _turn(
    out,
    x,
    step,
    block,
    cos,
    sin,
    N: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    BACK: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
):
    """Some heads of one token, `step` apart."""
    head = block * HEADS + tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, PAIRS)[None, :]
    inside = (head < N) & (pair < HALF)
    source, target = x + head.to(tl.int64) * step, out + head * D
    left = tl.load(source + pair, mask=inside, other=0)
    right = tl.load(source + HALF + pair, mask=inside, other=0)
    cosines = tl.load(cos + pair, mask=pair < HALF, other=0).to(tl.float32)
    sines = tl.load(sin + pair, mask=pair < HALF, other=0).to(tl.float32)
    if BACK:
        sines = -sines
    new_left = _times(left, cosines, cos) - _times(right, sines, cos)
    new_right = _times(right, cosines, cos) + _times(left, sines, cos)
    tl.store(target + pair, new_left.to(out.dtype.element_ty), mask=inside)
    tl.store(target + HALF + pair, new_right.to(out.dtype.element_ty), mask=inside)
    if D > 2 * HALF:
        column = 2 * HALF + tl.arange(0, REST)[None, :]
        beyond = (head < N) & (column < D)
        tl.store(target + column, tl.load(source + column, mask=beyond, other=0), mask=beyond)


@triton.jit
def _times(x, table, like):
    """The product in fp32, rounded as torch rounds it where tables are `like` that."""
    return (x.to(tl.float32) * table).to(like.dtype.element_ty).to(tl.float32)
