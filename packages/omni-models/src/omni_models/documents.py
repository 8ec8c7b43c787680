"""What attention is told beside queries, keys and values: where documents end, which tokens see each other both ways,
and nothing that it would not read.

Dimensions: B rows, S tokens a row, N query heads, K key heads, D head dim.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_KNOWN = frozenset(
    {
        *("cu_seqlens", "max_seqlen", "position_ids", "layer_idx", "cache_position", "use_cache", "past_key_values"),
        *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "num_items_in_batch"),
        "logits_to_keep",
    }
)
"""What may come along without changing what attention computes."""


def find_documents(q_BNSD: Tensor, k_BKSD: Tensor, facts: Mapping[str, Any]) -> tuple[Tensor, int]:
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


def same_document(cu_seqlens: Tensor, q_BNSD: Tensor) -> Tensor:
    """(B, S, S) bool: whether query and key are of one document."""
    B, _, S, _ = q_BNSD.shape
    tokens = torch.arange(B * S, dtype=torch.int32, device=q_BNSD.device)
    document_BS = torch.bucketize(tokens, cu_seqlens.to(q_BNSD.device), right=True).view(B, S)
    return document_BS[:, :, None] == document_BS[:, None, :]


def same_group(group_ids: Tensor) -> Tensor:
    """(..., S, S) bool: whether query and key are of one group, by ids (..., S) of which 0 is no group."""
    return (group_ids[..., :, None] == group_ids[..., None, :]) & (group_ids[..., :, None] > 0)


def reach(size: int, causal: bool, window: int | None, like: Tensor, *, group_ids: Tensor | None = None) -> Tensor:
    """(size, size) bool, with groups one for each row: whether a query may see a key, by their distance, or by that and
    as one of its group."""
    token = torch.arange(size, device=like.device)
    distance = token[:, None] - token[None, :]
    reach = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if group_ids is not None:
        reach = reach | same_group(group_ids)
    if window is not None:
        reach = reach & (distance < window if causal else distance.abs() < window)
    return reach


def refuse_unknown(module: nn.Module, mask: Tensor | None, facts: Mapping[str, Any]) -> None:
    """Raises `ValueError` for a mask, and for facts that no backend reads, which would be dropped in silence."""
    unknown = sorted(name for name, value in facts.items() if value is not None and name not in _KNOWN)
    if mask is not None:
        unknown.append("attention_mask")
    if unknown:
        raise ValueError(
            f"{type(module).__name__} hands {', '.join(unknown)} to its attention, which no backend here reads: "
            "this kind of attention is not built yet."
        )


def refuse_lacking(backend: str, **unsupported: object) -> None:
    """Raises `ValueError` for what is asked of `backend`, that is not None, and that it lacks."""
    if asked := [name for name, value in unsupported.items() if value is not None]:
        raise ValueError(f"{backend} attention has no {' and no '.join(asked)}, which this model asks for: use eager.")


def causal_of(module: nn.Module, is_causal: bool | None) -> bool:
    """Whether a query sees no later key: as is asked for, or else as the calling layer says."""
    return bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
