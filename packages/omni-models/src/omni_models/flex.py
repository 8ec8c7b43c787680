"""Attention by torch's flex_attention (Dong et al., 2024, arXiv:2412.05496): any device that compiles, any dtype, with
window, softcap and sinks, one call for all documents.

What a query sees of its row is one range of keys, whose bounds only ever move forward: they say all of documents,
causality and window. So do they of blocks of 128 by 128, of which kernels leave out those where no query sees a key,
and take as they are those where every query sees all. Which these are follows from the bounds of a block's first and
last token, in a few operators over S and (S / 128)^2 numbers, on the device, without a wait of the host. That is so
much less than a layer computes that each call makes its own, and nothing is held between calls.

On a GPU it is compiled when first called, once for all models; how many documents there are is no part of what is
compiled. On a CPU flex_attention has no backward pass; there the operator behind it is called, which torch computes by
whole S x S scores, for small rows and for tests.

Dimensions: B rows, S tokens a row, N query heads, K key and value heads, D head dim, C = ceil(S / 128) blocks a row.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from omni_models.documents import causal_of, find_documents, refuse_lacking, refuse_unknown
from omni_models.rows import has_triton

BLOCK: Final = 128
"""Tokens of a block."""
_NARROWEST: Final = 16
"""The least dim of a head that the kernels take."""


class Ranges(NamedTuple):
    """Of each token of a row, the first and the last token that it sees, or that sees it; int32."""

    first_BS: Tensor
    last_BS: Tensor


def flex(
    module: nn.Module,
    q_BNSD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **facts: Any,
) -> tuple[Tensor, None]:
    """flex_attention, one call for all documents, with window, softcap and sinks: compiled on CUDA; on CPUs for tests.

    Arguments as in `omni_models.attention.eager`.

    Raises:
        ValueError: for dropout, which it lacks, and where it cannot be compiled.
    """
    refuse_lacking("flex", dropout=dropout or None, group_ids=facts.pop("group_ids", None))
    refuse_unknown(module, mask, facts)
    if problems := flex_problems(q_BNSD.device.type):
        raise ValueError(" ".join(problems))
    (B, _, S, D), Dv = q_BNSD.shape, v_BKSD.shape[3]
    cu_seqlens, _ = find_documents(q_BNSD, k_BKSD, facts)
    reach = S if sliding_window is None else sliding_window - 1
    ahead = 0 if causal_of(module, is_causal) else reach
    bounds = cu_seqlens.to(q_BNSD.device)
    seen, seeing = find_ranges(bounds, B, S, reach, ahead), find_ranges(bounds, B, S, ahead, reach)
    # Zeros beyond the end of a head add nothing.
    q, k, v = (
        F.pad(x, (0, _NARROWEST - x.shape[3])) if x.shape[3] < _NARROWEST else x for x in (q_BNSD, k_BKSD, v_BKSD)
    )
    attend = _attend if q.device.type == "cpu" else _compiled()
    out = attend(q, k, v, s_aux, seen, seeing, D**-0.5 if scaling is None else scaling, softcap)
    return out.transpose(1, 2)[..., :Dv].contiguous(), None


def flex_problems(device_type: str) -> list[str]:
    """Why flex_attention cannot be had on this kind of device, in words; empty if it can. Imports nothing."""
    if device_type not in ("cpu", "cuda"):
        return [f"flex attention is for CUDA and for CPUs, not for {device_type}: use sdpa, or eager."]
    if device_type == "cuda" and not has_triton():
        return [
            "flex attention is compiled by Triton, which is not installed: use sdpa, or eager for softcap and sinks."
        ]
    return []


def find_ranges(cu_seqlens: Tensor, rows: int, length: int, back: int, ahead: int) -> Ranges:
    """The tokens of its document from `back` before to `ahead` after each token, counted in its row. Pure.

    >>> first_BS, last_BS = find_ranges(torch.tensor([0, 3, 4], dtype=torch.int32), 1, 4, 1, 0)
    >>> first_BS.tolist(), last_BS.tolist()
    ([[0, 0, 1, 3]], [[0, 1, 2, 3]])
    """
    token_T = torch.arange(rows * length, dtype=torch.int32, device=cu_seqlens.device)
    document_T = torch.bucketize(token_T, cu_seqlens[1:], right=True)
    first_T = torch.maximum(cu_seqlens[document_T], token_T - back)
    last_T = torch.minimum(cu_seqlens[document_T + 1] - 1, token_T + ahead)
    row_B1 = torch.arange(rows, dtype=torch.int32, device=cu_seqlens.device)[:, None] * length
    return Ranges(*((x.view(rows, length) - row_B1).to(torch.int32) for x in (first_T, last_T)))


def list_blocks(ranges: Ranges, size: int = BLOCK) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each block of tokens, how many and which blocks some of its tokens see, and how many and which all of them see
    whole, which the first do not count: (B, 1, C), (B, 1, C, C) and the same again, int32, as `BlockMask` wants. Pure.
    """
    first_BS, last_BS = ranges
    S = first_BS.shape[1]
    place = torch.arange(-(-S // size), dtype=torch.int32, device=first_BS.device)
    start, stop = place * size, (place * size + size - 1).clamp(max=S - 1)
    # Bounds only move forward, so those of a block's first and last token are the widest on their side.
    low, high = first_BS[:, start] // size, last_BS[:, stop] // size
    low_whole, high_whole = (first_BS[:, stop] + size - 1) // size, (last_BS[:, start] + 1) // size - 1
    complete = stop - start == size - 1
    whole = (high_whole - low_whole + 1).clamp(min=0) * complete
    some = high - low + 1 - whole
    before = torch.where(whole > 0, low_whole - low, some)
    some_index = low[..., None] + place + (place >= before[..., None]) * whole[..., None]
    whole_index = low_whole[..., None] + place
    lists = (some, some_index.clamp(max=len(place) - 1), whole, whole_index.clamp(max=len(place) - 1))
    return tuple(x[:, None].to(torch.int32).contiguous() for x in lists)  # pyright: ignore[reportReturnType]


@cache
def _compiled() -> Callable[..., Tensor]:
    """`_attend` as it is compiled; to ask for it is slow, and not only the first time."""
    # The compiler pads rows of large tensors, but the kernel writes its logarithms side by side.
    return torch.compile(_attend, fullgraph=True, options={"comprehensive_padding": False})


def _attend(  # noqa: PLR0917 As flat as what is compiled takes its arguments best.
    q_BNSD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    sink_N: Tensor | None,
    seen: Ranges,
    seeing: Ranges,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """(B, N, S, D)."""
    S = q_BNSD.shape[2]
    first_BS, last_BS = seen
    lists = _named("kv", list_blocks(seen)) | _named("q", list_blocks(seeing))

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k >= first_BS[b, q]) & (k <= last_BS[b, q])

    def cap(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score if softcap is None else softcap * torch.tanh(score / softcap)

    mask = BlockMask(seq_lengths=(S, S), **lists, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=sees)
    if q_BNSD.device.type == "cpu":
        # What flex_attention calls; it refuses gradients on CPUs, which this has. It gives the logarithm to base 2.
        operator: Any = torch.ops.higher_order.flex_attention
        out_BNSD, lse, _ = operator(q_BNSD, k_BKSD, v_BKSD, cap, mask.as_tuple(), scale, {})
        lse_BNS = lse * math.log(2)
    else:
        told = AuxRequest(lse=True)
        out_BNSD, aux = flex_attention(q_BNSD, k_BKSD, v_BKSD, cap, mask, scale=scale, enable_gqa=True, return_aux=told)
        lse_BNS = aux.lse
    if sink_N is None:
        return out_BNSD
    # A sink is one more key: it takes exp(sink) of a sum that was exp(lse) without it, and gives nothing.
    kept_BNS = torch.sigmoid(lse_BNS - sink_N.to(lse_BNS.dtype)[:, None])
    return (out_BNSD * kept_BNS[..., None]).to(out_BNSD.dtype)


def _named(side: str, lists: tuple[Tensor, ...]) -> dict[str, Tensor]:
    names = (f"{side}_num_blocks", f"{side}_indices", f"full_{side}_num_blocks", f"full_{side}_indices")
    return dict(zip(names, lists, strict=True))
