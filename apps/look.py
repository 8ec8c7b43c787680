"""What a step has to know of rows with media: positions, which tokens see each other, and where features go.

All of it follows from tokens and arrays, and is found once, by the rank that reads the rows. Ranks that share them are
told of positions, and never get the arrays: who encodes a medium is sent it by who read it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from omni_data import IGNORE, Batch
from omni_models import Shown, group_images, is_text, list_media, media_positions, split_targets
from omni_parallel import Medium, Owned, take_turns

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """Rows with media.

    Attributes:
        batch: without them; the labels are those of text.
        position_ids: as the model takes them, (B, S) or (4, B, S).
        group_ids: (B, S), see `group_images`; None for models whose tokens see no later ones.
        targets: by decoder, what its tokens stand for, in their order.
        learn_BS: which tokens are learnt, by text or by a decoder.
        shown: the media by kind, on the rank that read them; on others none.
    """

    batch: Batch
    position_ids: Tensor
    group_ids: Tensor | None
    targets: Mapping[str, NDArray]
    learn_BS: NDArray[np.bool_]
    shown: Mapping[str, Shown] = field(default_factory=dict)


def look(batch: Batch, model: PreTrainedModel) -> Looked:
    """`batch` as `model` is shown it. Pure.

    Raises:
        ValueError: if placeholders and media of a document do not fit.
    """
    tokens_BS, segments_BS = torch.from_numpy(batch.tokens_BS), torch.from_numpy(batch.segments_BS)
    arrays, targets = split_targets(model.config, batch.media)
    media = {name: torch.from_numpy(array) for name, array in arrays.items()}
    labels_BS = np.where(is_text(model.config, batch.labels_BS), batch.labels_BS, IGNORE)
    return Looked(
        replace(batch, media={}, labels_BS=labels_BS),
        media_positions(model, tokens_BS, segments_BS, media),
        group_images(model.config, tokens_BS, segments_BS),
        targets,
        np.pad(batch.labels_BS[:, :-1] != IGNORE, ((0, 0), (1, 0))),
        list_media(model.config, tokens_BS, segments_BS, media),
    )


def without_media(rows: T) -> T:
    """What ranks that share `rows` are told of them: all but media. Pure."""
    return replace(rows, shown={}) if isinstance(rows, Looked) else rows


def own_media(looked: Looked, ranks: Sequence[int], *, pin: bool = False) -> dict[str, Owned]:
    """The media of this rank by kind, as all ranks know of them. Pure.

    Args:
        looked: rows.
        ranks: that share them, in the order of their slices.
        pin: put arrays into memory that a GPU reads by itself.
    """
    size = -(-looked.batch.tokens_BS.shape[1] // len(ranks))
    owned = {}
    for kind, shown in looked.shown.items():
        media = [
            Medium(rows, cost, tuple(take_turns(places, size, ranks)), sizes)
            for rows, cost, (_, places), sizes in zip(shown.rows, shown.costs, shown.places, shown.sizes, strict=True)
        ]
        owned[kind] = Owned({n: x.pin_memory() if pin else x for n, x in shown.arrays.items()}, media)
    return owned
