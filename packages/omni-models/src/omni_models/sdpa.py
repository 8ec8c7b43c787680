"""torch's scaled dot product attention, one call a document: by the kernel that torch chooses, or by cuDNN's.

Dimensions: B rows, S tokens a row, N query heads, K key and value heads, D head dim.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from omni_models.documents import causal_of, find_documents, reach, refuse_lacking, refuse_unknown
from omni_models.fa4 import find_capability, tell_gpu


def sdpa(
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
    group_ids: Tensor | None = None,
    **facts: Any,
) -> tuple[Tensor, None]:
    """torch's scaled dot product attention, one call a document: any device, any dtype, memory linear in S.

    Arguments as in `omni_models.attention.eager`. Documents with groups or windows have a mask, as large as the square
    of their tokens. With many documents on a GPU "varlen" is the faster one.

    Raises:
        ValueError: for softcap and sinks, which torch's kernels lack.
    """
    refuse_unknown(module, mask, facts)
    refuse_lacking("sdpa", softcap=softcap, s_aux=s_aux)
    N = q_BNSD.shape[1]
    causal = causal_of(module, is_causal)
    cu_seqlens, longest = find_documents(q_BNSD, k_BKSD, facts)
    k_BNSD, v_BNSD = (repeat_heads(x, N) for x in (k_BKSD, v_BKSD))

    def attend(q: Tensor, k: Tensor, v: Tensor, groups: Tensor | None) -> Tensor:
        size = q.shape[2]
        masked = (sliding_window is not None and sliding_window < size) or groups is not None
        within = reach(size, causal, sliding_window, q, group_ids=groups) if masked else None
        # A mask of each row is the same for all heads.
        within = within if within is None or within.ndim == 2 else within[:, None]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=within, dropout_p=dropout, is_causal=causal and not masked, scale=scaling
        )

    return _by_document(attend, (q_BNSD, k_BNSD, v_BNSD), cu_seqlens, longest, group_ids=group_ids), None


def cudnn(
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
    """cuDNN's attention, one call a document: CUDA, bf16 or fp16, D a multiple of 8 up to 128.

    Arguments as in `omni_models.attention.eager`. cuDNN makes a plan for each new length, which takes time: it is for
    rows that are one document each.

    Raises:
        ValueError: for softcap, sinks, dropout and windows that hide something, which it lacks, and for another device,
            dtype or head dim.
    """
    refuse_lacking("cudnn", group_ids=facts.pop("group_ids", None))
    refuse_unknown(module, mask, facts)
    cu_seqlens, longest = find_documents(q_BNSD, k_BKSD, facts)
    refuse_lacking("cudnn", softcap=softcap, s_aux=s_aux, dropout=dropout or None)
    if sliding_window is not None and sliding_window < longest:
        raise ValueError(
            f"cudnn attention has no window, which would hide some of documents of {longest} tokens from others beyond "
            f"{sliding_window}: use varlen, or sdpa."
        )
    dims = q_BNSD.shape[3], v_BKSD.shape[3]
    where = q_BNSD.device.type
    if problems := cudnn_problems(q_BNSD.dtype, find_capability(where), dims, device_type=where):
        raise ValueError(" ".join(problems))
    causal = causal_of(module, is_causal)

    def attend(q: Tensor, k: Tensor, v: Tensor, groups: None) -> Tensor:
        size = q.shape[2]
        # Of one key cuDNN makes no plan; twice the same key gives what it gives once.
        q, k, v = (x.repeat_interleave(2, dim=2) if size == 1 else x for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scaling, enable_gqa=True)[:, :, :size]

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _by_document(attend, (q_BNSD, k_BKSD, v_BKSD), cu_seqlens, longest), None


def cudnn_problems(
    dtype: torch.dtype, capability: tuple[int, int] | None, dims: tuple[int, int], *, device_type: str
) -> list[str]:
    """Why cuDNN cannot compute attention, in words; empty if it can. Pure.

    Args:
        dtype: of queries, keys and values.
        capability: of the GPU; None for another device.
        dims: of a head, of queries and of values. Wider ones than 128 some versions of cuDNN take on some GPUs.
        device_type: "cuda" for a GPU.
    """
    if dtype not in (torch.bfloat16, torch.float16) or capability is None or capability < (8, 0):
        device = tell_gpu(device_type, capability)
        return [
            f"cudnn attention needs bf16 or fp16 on a GPU of capability 8.0 or more, not {dtype} on {device}: use sdpa."
        ]
    odd = sorted({dim for dim in dims if dim > 128 or dim % 8})
    return [f"cudnn attention needs heads of a multiple of 8 up to 128, not {dim}: use varlen, or sdpa." for dim in odd]


def repeat_heads(x_BKSD: Tensor, num_heads: int) -> Tensor:
    """The same heads, each as often as queries share it."""
    repeats = num_heads // x_BKSD.shape[1]
    return x_BKSD if repeats == 1 else x_BKSD.repeat_interleave(repeats, dim=1)


def _by_document(
    attend: Callable[..., Tensor],
    heads: tuple[Tensor, Tensor, Tensor],
    cu_seqlens: Tensor,
    longest: int,
    *,
    group_ids: Tensor | None = None,
) -> Tensor:
    """(B, S, N, D): what `attend` gives of queries, keys and values (B, heads, S, D) and groups (B, S), if there are
    any, called for each document alone, or once where each row is one."""
    B, _, S, _ = heads[0].shape
    if longest == S and len(cu_seqlens) == B + 1:
        return attend(*heads, group_ids).transpose(1, 2).contiguous()
    pieces = []
    grouped = _count_grouped(group_ids, cu_seqlens)
    for (start, stop), tokens in zip(pairwise(cu_seqlens.tolist()), grouped, strict=True):
        row, span = start // S, slice(start % S, start % S + stop - start)
        groups = group_ids[row, span][None] if group_ids is not None and tokens else None
        pieces.append(attend(*(x[row, :, span][None] for x in heads), groups))
    return torch.cat([piece[0].transpose(0, 1) for piece in pieces]).unflatten(0, (-1, S))


def _count_grouped(group_ids: Tensor | None, cu_seqlens: Tensor) -> list[int]:
    """How many tokens of each document are of a group; the host waits for the device."""
    if group_ids is None:
        return [0] * (len(cu_seqlens) - 1)
    before = F.pad((group_ids > 0).flatten().cumsum(0), (1, 0))
    return before[cu_seqlens.to(before.device, torch.int64)].diff().tolist()
