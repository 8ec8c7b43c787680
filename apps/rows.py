"""Rows as a step takes them: made on the host ahead of it, in memory that a GPU reads by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from look import Looked, own_media
from torch import Tensor

from omni_data import IGNORE, Batch, Counts, document_bounds, shard_sequence
from omni_models import Routed, decoder_arguments
from omni_parallel import Owned, send_media


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A batch of one rank, and what is told of it."""

    tensors: Mapping[str, Tensor]
    """By name: arguments of the model, labels, and what else a step looks at."""
    longest: int
    """Tokens of the longest document."""
    reach: float
    """Tokens of the document that a token is in, on average: what attention costs."""
    count: int
    """Rows that have documents."""
    fill: float
    """The share of positions that are not padding."""
    counts: Counts
    """What was read for it."""
    over: bool = False
    """There is no more data of this rank: these are rows of padding, since other ranks may have some."""
    why: str = ""
    """If there never was any: why."""
    owned: Mapping[str, Owned] | None = None
    """The media of this rank, by kind, if there may be some on any rank."""
    routed: Mapping[str, Routed] | None = None
    """What this rank has of the outputs of each decoder, if the model has decoders."""

    @property
    def encoding(self) -> float:
        """Floating-point operations of towers in a forward pass, of the media of this rank."""
        return sum(medium.cost for owned in (self.owned or {}).values() for medium in owned.media)

    def on(self, device: torch.device) -> dict[str, Any]:
        """The tensors on `device`, and `max_seqlen`; the media that this rank encodes, and where their features go.

        Effect: begins to copy tensors. Collective, where rows may have media.
        """
        inputs = {name: t.to(device, non_blocking=True) for name, t in self.tensors.items()}
        inputs |= {"max_seqlen": self.longest}
        if self.routed:
            inputs |= decoder_arguments(self.routed, device)
        if self.owned is None:
            return inputs
        media, routes = send_media(self.owned, device)
        return inputs | media | {"media_routes": routes}


def collate(
    rows: Batch | Looked, vocab_size: int, *, part: int = 0, ranks: Sequence[int] = (0,), pin: bool = False
) -> Rows:
    """A batch of rows as tensors on the host.

    Rows are whole, which `apply_ulysses` cuts; of the labels, shifted already, it is the `part`-th of as many as share
    them, and `real_T` tells which tokens of that part are of documents.

    Args:
        rows: of this rank; `Looked`, if there may be media on any.
        vocab_size: rows of the embedding.
        part: which part of the labels.
        ranks: that share the rows, in the order of their parts.
        pin: put it into memory that a GPU reads by itself.

    Raises:
        ValueError: if a token has no embedding.
    """
    batch, parts = rows.batch if isinstance(rows, Looked) else rows, len(ranks)
    if (largest := int(batch.tokens_BS.max())) >= vocab_size:
        raise ValueError(f"the data has token id {largest}, but the model has embeddings for {vocab_size} only.")
    cu_seqlens, longest = document_bounds(batch.segments_BS)
    arrays = {
        "input_ids": batch.tokens_BS,
        "position_ids": batch.positions_BS,
        "labels_Bs": shard_sequence(batch.labels_BS, part, parts),
        "sources_B": batch.sources_B,
        "real_T": shard_sequence(np.where(batch.segments_BS > 0, 0, IGNORE), part, parts).ravel() == 0,
        "cu_seqlens": cu_seqlens,
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if isinstance(rows, Looked):
        seen = {"position_ids": rows.position_ids, "group_ids": rows.group_ids}
        tensors |= {name: tensor for name, tensor in seen.items() if tensor is not None}
    lengths = np.diff(cu_seqlens).astype(float)
    return Rows(
        tensors={name: tensor.pin_memory() for name, tensor in tensors.items()} if pin else tensors,
        longest=longest,
        reach=float((lengths**2).sum() / lengths.sum()),
        count=int((batch.sources_B >= 0).sum()),
        fill=batch.fill,
        counts=batch.counts,
        owned=own_media(rows, ranks, pin=pin) if isinstance(rows, Looked) else None,
    )
