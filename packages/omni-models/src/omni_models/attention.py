"""Attention backends: functions of the form transformers calls, exact for rows packed from many documents.

Where documents end rides as keyword arguments of `model(...)` down to these functions; no S x S mask travels.

    cu_seqlens   (documents + 1,) int32: bounds of the documents in the B*S flattened tokens; none crosses a row
    max_seqlen   tokens of the longest

Without them `position_ids` (B, S) that restart at 0 say the same, and without those each row is one document.

Dimensions: B rows, S tokens a row, N query heads, K key and value heads, D head dim, T = B*S tokens.
"""

import inspect
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel

from omni_models.fa4 import INSTALL, fa4_forward, fa4_problems, find_capability, has_fa4

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
        facts: `cu_seqlens`, `max_seqlen` or `position_ids`.

    Raises:
        ValueError: for a mask, and for facts that it does not know and would otherwise drop in silence.
    """
    _refuse_unknown(module, mask, facts)
    _, N, S, D = q_BNSD.shape
    k_BNSD, v_BNSD = (_repeat_heads(x, N) for x in (k_BKSD, v_BKSD))
    scores = q_BNSD @ k_BNSD.transpose(-1, -2) * (D**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    cu_seqlens, _ = _documents(q_BNSD, k_BKSD, facts)
    allowed_BSS = _same_document(cu_seqlens, q_BNSD) & _reach(S, _causal(module, is_causal), sliding_window, q_BNSD)
    scores = scores.masked_fill(~allowed_BSS[:, None], torch.finfo(scores.dtype).min)
    if s_aux is not None:
        sinks = s_aux.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = F.softmax(torch.cat([scores, sinks], dim=-1), dim=-1, dtype=torch.float32)[..., :-1]
    else:
        weights = F.softmax(scores, dim=-1, dtype=torch.float32)
    weights = F.dropout(weights.to(q_BNSD.dtype), dropout) if dropout else weights.to(q_BNSD.dtype)
    return (weights @ v_BNSD).transpose(1, 2).contiguous(), None


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
    **facts: Any,
) -> tuple[Tensor, None]:
    """torch's scaled dot product attention, one call a document: any device, any dtype, memory linear in S.

    Arguments as in `eager`. With many documents on a GPU "varlen" is the faster one.

    Raises:
        ValueError: for softcap and sinks, which torch's kernels lack.
    """
    _refuse_unknown(module, mask, facts)
    _refuse("sdpa", softcap=softcap, s_aux=s_aux)
    N, S = q_BNSD.shape[1:3]
    causal = _causal(module, is_causal)
    cu_seqlens, longest = _documents(q_BNSD, k_BKSD, facts)
    k_BNSD, v_BNSD = (_repeat_heads(x, N) for x in (k_BKSD, v_BKSD))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        size = q.shape[2]
        windowed = sliding_window is not None and sliding_window < size
        reach = _reach(size, causal, sliding_window, q) if windowed else None
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=reach, dropout_p=dropout, is_causal=causal and not windowed, scale=scaling
        )

    if longest == S and len(cu_seqlens) == len(q_BNSD) + 1:
        return attend(q_BNSD, k_BNSD, v_BNSD).transpose(1, 2).contiguous(), None
    bounds = cu_seqlens.tolist()
    pieces = [
        attend(*(x[start // S, :, start % S : start % S + stop - start][None] for x in (q_BNSD, k_BNSD, v_BNSD)))
        for start, stop in pairwise(bounds)
    ]
    out_TND = torch.cat([piece[0].transpose(0, 1) for piece in pieces])
    return out_TND.unflatten(0, (-1, S)), None


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
    _refuse_unknown(module, mask, facts)
    _refuse("varlen", softcap=softcap, s_aux=s_aux, dropout=dropout or None)
    if not q_BNSD.is_cuda or q_BNSD.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"varlen attention needs bf16 or fp16 on CUDA, got {q_BNSD.dtype} on {q_BNSD.device}: use sdpa."
        )
    S, D, Dv = q_BNSD.shape[2], q_BNSD.shape[3], v_BKSD.shape[3]
    cu_seqlens, longest = _documents(q_BNSD, k_BKSD, facts)
    v_BKSD = F.pad(v_BKSD, (0, D - Dv)) if Dv < D else v_BKSD
    q_TND, k_TKD, v_TKD = (x.transpose(1, 2).flatten(0, 1) for x in (q_BNSD, k_BKSD, v_BKSD))
    causal = _causal(module, is_causal)
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
    _refuse_unknown(module, mask, facts)
    _refuse("fa4", dropout=dropout or None)
    B, N, S, D = q_BNSD.shape
    K, Dv = v_BKSD.shape[1], v_BKSD.shape[3]
    # The backward kernel wants one dim for all three where keys are shared, and the tiles of the forward kernel are cut
    # for values no wider than queries. Zeros beyond the end of either add nothing.
    wide = max(D, Dv) if Dv > D or (Dv < D and N != K) else 0
    if problems := fa4_problems(q_BNSD.dtype, find_capability(q_BNSD.device.type), (max(D, wide), max(Dv, wide))):
        raise ValueError(" ".join(problems) + " Use sdpa, or eager for softcap and sinks.")
    cu_seqlens, longest = _documents(q_BNSD, k_BKSD, facts)
    q, k, v = (F.pad(x, (0, wide - x.shape[-1])) if x.shape[-1] < wide else x for x in (q_BNSD, k_BKSD, v_BKSD))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    whole = longest == S and len(cu_seqlens) == B + 1
    if not whole:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    causal = _causal(module, is_causal)
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


ATTENTIONS: Mapping[str, AttentionFn] = MappingProxyType({"eager": eager, "sdpa": sdpa, "varlen": varlen, "fa4": fa4})
"""The backends by name."""

# Newer versions of torch want to be told that queries share keys; older ones see it from the shapes.
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


_KNOWN = frozenset(
    {
        *("cu_seqlens", "max_seqlen", "position_ids", "layer_idx", "cache_position", "use_cache", "past_key_values"),
        *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "num_items_in_batch"),
    }
)
"""What may come along without changing what attention computes."""


def choose_attention(model: PreTrainedModel, device_type: str, dtype: torch.dtype) -> str:
    """The fastest backend that computes this model's attention exactly on this device in this dtype.

    Pure but for two questions put to this machine: whether FlashAttention-4 is installed, and what its GPU can do.
    """
    order = ("fa4", "varlen", "sdpa")
    return next((name for name in order if not attention_problems(model, name, device_type, dtype)), "eager")


def attention_problems(model: PreTrainedModel, attend: str, device_type: str, dtype: torch.dtype) -> list[str]:
    """Why backend `attend` cannot compute this model's attention on this device in this dtype, if it cannot.

    Pure, but for the questions about FlashAttention-4 of `choose_attention`.
    """
    text = model.config.get_text_config()
    lacks = [
        what
        for what, asked in (
            ("softcap", attend != "fa4" and getattr(text, "attn_logit_softcapping", None) is not None),
            ("sinks", attend != "fa4" and any("sink" in name for name, _ in model.named_parameters())),
            ("dropout", attend != "sdpa" and any(getattr(text, name, None) for name in _DROPOUTS)),
        )
        if asked and attend != "eager"
    ]
    problems = [
        f"{attend} attention has no {what}, which {model.config.model_type} asks for: use eager." for what in lacks
    ]
    if attend == "varlen":
        if device_type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
            problems.append(f"varlen attention needs bf16 or fp16 on CUDA, not {dtype} on {device_type}: use sdpa.")
        for head_dim in sorted({max(dims) for dims in _head_dims(model)}):
            if head_dim > 256 or head_dim % 8:
                problems.append(f"varlen attention needs heads of a multiple of 8 up to 256, not {head_dim}: use sdpa.")
    if attend == "fa4":
        if not has_fa4():
            problems.append(f"fa4 attention needs flash-attn-4, which is not installed: {INSTALL}.")
        capability = find_capability(device_type)
        found = (fa4_problems(dtype, capability, dims) for dims in sorted(_head_dims(model)))
        problems += dict.fromkeys(problem for several in found for problem in several)
    return problems


def _head_dims(model: PreTrainedModel) -> set[tuple[int, int]]:
    """The dims of queries and of values of every attention module that tells; else what the configuration says."""
    found = set()
    for module in model.modules():
        dim = getattr(module, "qk_head_dim", None) or getattr(module, "head_dim", None)
        if "Attention" in type(module).__name__ and isinstance(dim, int):
            found.add((dim, getattr(module, "v_head_dim", None) or dim))
    if found:
        return found
    text = model.config.get_text_config()
    dim = getattr(text, "head_dim", None) or text.hidden_size // getattr(text, "num_attention_heads", 1)
    return {(dim, dim)}


_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")
"""What configurations call the probability of dropping a weight of attention."""


def _documents(q_BNSD: Tensor, k_BKSD: Tensor, facts: Mapping[str, Any]) -> tuple[Tensor, int]:
    """Bounds of the documents (int32) and the length of the longest."""
    B, _, S, _ = q_BNSD.shape
    if k_BKSD.shape[2] != S:
        raise ValueError(
            f"{S} queries met {k_BKSD.shape[2]} keys: this attention trains and reads no cache. "
            "Pass use_cache=False, or load the model with plain transformers to generate."
        )
    if (cu_seqlens := facts.get("cu_seqlens")) is not None:
        return cu_seqlens, int(facts["max_seqlen"])
    positions = facts.get("position_ids")
    if positions is None or positions.ndim != 2:
        return torch.arange(0, (B + 1) * S, S, dtype=torch.int32, device=q_BNSD.device), S
    starts_BS = positions.expand(B, S) == 0
    starts_BS = starts_BS | (torch.arange(S, device=positions.device) == 0)
    starts = starts_BS.flatten().nonzero().flatten()
    bounds = torch.cat([starts, starts.new_tensor([B * S])]).to(torch.int32)
    return bounds, int(bounds.diff().max())


def _same_document(cu_seqlens: Tensor, q_BNSD: Tensor) -> Tensor:
    """(B, S, S) bool: whether query and key are of one document."""
    B, _, S, _ = q_BNSD.shape
    tokens = torch.arange(B * S, dtype=torch.int32, device=q_BNSD.device)
    document_BS = torch.bucketize(tokens, cu_seqlens.to(q_BNSD.device), right=True).view(B, S)
    return document_BS[:, :, None] == document_BS[:, None, :]


def _reach(size: int, causal: bool, window: int | None, like: Tensor) -> Tensor:
    """(size, size) bool: whether a query may see a key, by their distance alone."""
    token = torch.arange(size, device=like.device)
    distance = token[:, None] - token[None, :]
    reach = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        reach = reach & (distance < window if causal else distance.abs() < window)
    return reach


def _causal(module: nn.Module, is_causal: bool | None) -> bool:
    return bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal


def _repeat_heads(x_BKSD: Tensor, num_heads: int) -> Tensor:
    repeats = num_heads // x_BKSD.shape[1]
    return x_BKSD if repeats == 1 else x_BKSD.repeat_interleave(repeats, dim=1)


def _refuse_unknown(module: nn.Module, mask: Tensor | None, facts: Mapping[str, Any]) -> None:
    unknown = sorted(name for name, value in facts.items() if value is not None and name not in _KNOWN)
    if mask is not None:
        unknown.append("attention_mask")
    if unknown:
        raise ValueError(
            f"{type(module).__name__} hands {', '.join(unknown)} to its attention, which no backend here reads: "
            "this kind of attention is not built yet."
        )


def _refuse(backend: str, **unsupported: object) -> None:
    if asked := [name for name, value in unsupported.items() if value is not None]:
        raise ValueError(f"{backend} attention has no {' and no '.join(asked)}, which this model asks for: use eager.")
