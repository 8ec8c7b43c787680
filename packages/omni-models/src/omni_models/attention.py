"""Attention backends: functions of the form transformers calls, exact for rows packed from many documents.

Where documents end rides as keyword arguments of `model(...)` down to these functions; no S x S mask travels.

    cu_seqlens   (documents + 1,) int32: bounds of the documents in the B*S flattened tokens; none crosses a row
    max_seqlen   tokens of the longest
    group_ids    (B, S): tokens of one id above 0 see each other both ways, as those of an image do in some models

Without the first two `position_ids` (B, S) that restart at 0 say where documents end, and without those each row is
one. Without the last no tokens do.

Dimensions: B rows, S tokens a row, N query heads, K key and value heads, D head dim, T = B*S tokens.
"""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from omni_models.documents import causal_of, find_documents, reach, refuse_lacking, refuse_unknown, same_document
from omni_models.fa4 import fa4_forward, fa4_problems, find_capability, round_dim
from omni_models.flex import flex
from omni_models.sdpa import cudnn, repeat_heads, sdpa

AttentionFn = Callable[..., tuple[Tensor, Tensor | None]]
"""(module, q_BNSD, k_BKSD, v_BKSD, mask, **facts) -> (out_BSND, weights or None)."""


def eager(
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
    """The readable reference: whole S x S scores, softmax in fp32. Every variant; memory grows as B*N*S^2.

    Args:
        module: the calling layer; its `is_causal` counts where the argument is None.
        q_BNSD: queries, after position encoding.
        k_BKSD: keys; each serves N/K query heads.
        v_BKSD: values; their D may differ from that of the queries.
        mask: must be None: documents are told by `facts`.
        scaling: of the scores; None for D ** -0.5.
        dropout: probability of dropping a weight.
        sliding_window: a query sees itself and the `sliding_window - 1` keys before it.
        softcap: scores become softcap * tanh(scores / softcap).
        s_aux: (N,) logits of the attention sinks, which take weight and give nothing.
        is_causal: a query sees no later key.
        group_ids: (B, S), but for those of its own group, within the window.
        facts: `cu_seqlens`, `max_seqlen` or `position_ids`.

    Raises:
        ValueError: for a mask, and for facts that it does not know and would otherwise drop in silence.
    """
    refuse_unknown(module, mask, facts)
    _, N, S, D = q_BNSD.shape
    k_BNSD, v_BNSD = (repeat_heads(x, N) for x in (k_BKSD, v_BKSD))
    scores = q_BNSD @ k_BNSD.transpose(-1, -2) * (D**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    cu_seqlens, _ = find_documents(q_BNSD, k_BKSD, facts)
    within = reach(S, causal_of(module, is_causal), sliding_window, q_BNSD, group_ids=group_ids)
    allowed_BSS = same_document(cu_seqlens, q_BNSD) & within
    scores = scores.masked_fill(~allowed_BSS[:, None], torch.finfo(scores.dtype).min)
    if s_aux is not None:
        sinks = s_aux.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = F.softmax(torch.cat([scores, sinks], dim=-1), dim=-1, dtype=torch.float32)[..., :-1]
    else:
        weights = F.softmax(scores, dim=-1, dtype=torch.float32)
    weights = F.dropout(weights.to(q_BNSD.dtype), dropout) if dropout else weights.to(q_BNSD.dtype)
    return (weights @ v_BNSD).transpose(1, 2).contiguous(), None


def varlen(
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
    """torch's variable-length flash attention, one call for all documents: CUDA, bf16 or fp16, D up to 256.

    Arguments as in `eager`.

    Raises:
        ValueError: for softcap, sinks and dropout, which the kernel lacks, and for another device or dtype.
    """
    refuse_lacking("varlen", group_ids=facts.pop("group_ids", None))
    refuse_unknown(module, mask, facts)
    refuse_lacking("varlen", softcap=softcap, s_aux=s_aux, dropout=dropout or None)
    if not q_BNSD.is_cuda or q_BNSD.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"varlen attention needs bf16 or fp16 on CUDA, got {q_BNSD.dtype} on {q_BNSD.device}: use sdpa."
        )
    S, D, Dv = q_BNSD.shape[2], q_BNSD.shape[3], v_BKSD.shape[3]
    cu_seqlens, longest = find_documents(q_BNSD, k_BKSD, facts)
    v_BKSD = F.pad(v_BKSD, (0, D - Dv)) if Dv < D else v_BKSD
    q_TND, k_TKD, v_TKD = (x.transpose(1, 2).flatten(0, 1) for x in (q_BNSD, k_BKSD, v_BKSD))
    causal = causal_of(module, is_causal)
    reach = -1 if sliding_window is None else sliding_window - 1
    window = (reach, 0 if causal else reach)
    out_TND = varlen_attn(
        q_TND, k_TKD, v_TKD, cu_seqlens, cu_seqlens, longest, longest, scale=scaling, window_size=window, **_GROUPED
    )
    assert isinstance(out_TND, Tensor)
    return out_TND.unflatten(0, (-1, S))[..., :Dv], None


def fa4(
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
    """FlashAttention-4, one call for all documents, with window, softcap and sinks: Hopper and newer, bf16 or fp16.

    Arguments as in `eager`. Queries, keys and values are read where they lie, if their rows start at 16 bytes.

    Raises:
        ValueError: for dropout, which the kernels lack, for another device, dtype or head dim, and if not installed.
    """
    refuse_lacking("fa4", dropout=dropout or None, group_ids=facts.pop("group_ids", None))
    refuse_unknown(module, mask, facts)
    B, N, S, D = q_BNSD.shape
    K, Dv = v_BKSD.shape[1], v_BKSD.shape[3]
    # The backward kernel wants one dim for all three where keys are shared, and the tiles of the forward kernel are cut
    # for values no wider than queries. Zeros beyond the end of either add nothing.
    wide = max(D, Dv) if Dv > D or (Dv < D and N != K) else 0
    dims = round_dim(max(D, wide)), round_dim(max(Dv, wide))
    where = q_BNSD.device.type
    if problems := fa4_problems(q_BNSD.dtype, find_capability(where), dims, device_type=where):
        raise ValueError(" ".join(problems) + " Use sdpa, or eager for softcap and sinks.")
    cu_seqlens, longest = find_documents(q_BNSD, k_BKSD, facts)
    padded = ((q_BNSD, dims[0]), (k_BKSD, dims[0]), (v_BKSD, dims[1]))
    q, k, v = ((F.pad(x, (0, dim - x.shape[-1])) if x.shape[-1] < dim else x).transpose(1, 2) for x, dim in padded)
    whole = longest == S and len(cu_seqlens) == B + 1
    if not whole:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    causal = causal_of(module, is_causal)
    # A window as long as a row hides nothing, and the kernels without one are faster.
    reach = None if sliding_window is None or sliding_window >= S else sliding_window - 1
    out, _ = fa4_forward(
        q,
        k,
        v,
        None if whole else cu_seqlens,
        longest,
        D**-0.5 if scaling is None else scaling,
        causal,
        reach,
        None if causal else reach,
        softcap,
        s_aux,
    )
    return (out if whole else out.unflatten(0, (-1, S)))[..., :Dv], None


ATTENTIONS: Mapping[str, AttentionFn] = MappingProxyType(
    {"eager": eager, "sdpa": sdpa, "cudnn": cudnn, "flex": flex, "varlen": varlen, "fa4": fa4}
)
"""The backends by name."""

# Newer versions of torch want to be told that queries share keys; older ones see it from the shapes.
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
