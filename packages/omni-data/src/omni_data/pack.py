"""Documents laid end to end in rows of one length, and back. Pure: arrays in, arrays out.

Dimensions: B rows, S tokens a row, s = ceil(S / count) tokens of one slice of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from omni_data.sample import Counts, Sample

IGNORE = -100  # The label of a position that has nothing to predict; torch's cross entropy skips it.

Packable = Sequence[int] | NDArray[np.integer] | Sample


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B packed rows. Arrays of shape (B, S) are int64.

    Attributes:
        tokens_BS: token ids.
        positions_BS: 0, 1, 2, ... from the start of each document.
        segments_BS: 1, 2, ... for the documents of a row, 0 for padding.
        labels_BS: the next token of the same document, already shifted; `IGNORE` where there is none, and where it is
            not to be learnt.
        sources_B: the number of the source that each row is from; -1 for a row of padding only.
        media: what the samples have beside tokens, joined in the order of the rows; see `Sample`.
        counts: what was read for these rows.
        problems: why documents that were left out cannot be used, each told once.
    """

    tokens_BS: NDArray[np.int64]
    positions_BS: NDArray[np.int64]
    segments_BS: NDArray[np.int64]
    labels_BS: NDArray[np.int64]
    sources_B: NDArray[np.int64]
    media: Mapping[str, NDArray] = field(default_factory=dict)
    counts: Counts = Counts()
    problems: tuple[str, ...] = ()

    @property
    def fill(self) -> float:
        """The share of positions that are not padding."""
        return float((self.segments_BS > 0).mean()) if self.segments_BS.size else 0.0


def pack_batch(
    rows: Sequence[Sequence[Packable]],
    seq_len: int,
    *,
    pad_id: int = 0,
    sources: Sequence[int] | None = None,
    counts: Counts | None = None,
    problems: tuple[str, ...] = (),
) -> Batch:
    """The rows as one batch: documents end to end, then padding.

    >>> pack_batch([[[7, 8, 9], [5, 6]]], 6).labels_BS.tolist()
    [[8, 9, -100, 6, -100, -100]]

    Args:
        rows: for each of B rows, its documents: samples, or sequences or arrays of token ids, all of which are learnt.
        seq_len: S; the lengths of a row's documents sum to at most this.
        pad_id: the token written after the last document.
        sources: for each row, the source that it is from. Left out: 0, and -1 for a row without documents.
        counts: kept with the batch.
        problems: likewise.

    Raises:
        ValueError: if a row's documents do not fit, or one of them is empty, or their media differ in kind.
    """
    if wrong := [p for row, documents in enumerate(rows) for p in _problems(row, documents, seq_len)]:
        raise ValueError("\n".join(wrong))
    tokens_BS, positions_BS, segments_BS, labels_BS = (
        np.full((len(rows), seq_len), fill, np.int64) for fill in (pad_id, 0, 0, IGNORE)
    )
    for row, documents in enumerate(rows):
        if not documents:
            continue
        lengths = np.array([len(document) for document in documents])
        stops, used = lengths.cumsum(), lengths.sum()
        tokens = np.concatenate([np.asarray(_tokens(document), np.int64) for document in documents])
        tokens_BS[row, :used] = tokens
        positions_BS[row, :used] = np.arange(used) - np.repeat(stops - lengths, lengths)
        segments_BS[row, :used] = np.repeat(np.arange(1, len(documents) + 1), lengths)
        learnt = np.where(_learnt(documents), tokens, IGNORE)
        labels_BS[row, : used - 1] = learnt[1:]
        labels_BS[row, stops - 1] = IGNORE
    origins = [0 if documents else -1 for documents in rows] if sources is None else sources
    media = join_media([document for documents in rows for document in documents])
    arrays = (tokens_BS, positions_BS, segments_BS, labels_BS, np.array(origins, np.int64))
    return Batch(*arrays, media=media, counts=counts or Counts(), problems=problems)


def join_media(documents: Sequence[Packable]) -> dict[str, NDArray]:
    """The media of all `documents`, joined in their order along the first dimension.

    Raises:
        ValueError: if arrays of one name do not fit together.
    """
    found: dict[str, list[NDArray]] = {}
    for document in documents:
        if isinstance(document, Sample):
            for name, array in document.media.items():
                found.setdefault(name, []).append(array)
    for name, arrays in found.items():
        if len(kinds := {(array.dtype, array.shape[1:]) for array in arrays}) > 1:
            told = " and ".join(sorted(f"{dtype} of (n, {', '.join(map(str, shape))})" for dtype, shape in kinds))
            raise ValueError(f"media {name!r} of documents that share a batch is {told}, which cannot be joined.")
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


def unpack_batch(batch: Batch) -> list[list[list[int]]]:
    """The rows that `pack_batch` was given, as token ids: its exact inverse.

    >>> unpack_batch(pack_batch([[[7, 8, 9], [5, 6]], []], 6))
    [[[7, 8, 9], [5, 6]], []]
    """
    rows: list[list[list[int]]] = []
    for tokens_S, segments_S in zip(batch.tokens_BS, batch.segments_BS, strict=True):
        used = segments_S > 0
        stops = np.flatnonzero(np.diff(segments_S[used])) + 1
        rows.append([document.tolist() for document in np.split(tokens_S[used], stops) if len(document)])
    return rows


def document_bounds(segments_BS: NDArray[np.integer]) -> tuple[NDArray[np.int32], int]:
    """Where documents start and stop in the B * S flattened tokens, as variable-length attention kernels ask for it.

    Every document is a span, and so is every run of padding; no span crosses a row.

    >>> document_bounds(np.array([[1, 1, 2, 0], [1, 1, 1, 1]]))
    (array([0, 2, 3, 4, 8], dtype=int32), 4)

    Returns:
        The bounds (`cu_seqlens`: 0, then the end of every span), int32, and the length of the longest span in tokens.
    """
    starts_BS = np.ones(segments_BS.shape, bool)
    starts_BS[:, 1:] = segments_BS[:, 1:] != segments_BS[:, :-1]
    bounds = np.append(np.flatnonzero(starts_BS), segments_BS.size).astype(np.int32)
    return bounds, int(np.diff(bounds).max(initial=0))


def shard_sequence(labels_BS: NDArray[np.int64], index: int, count: int) -> NDArray[np.int64]:
    """The `index`-th of `count` equal slices of every row, (B, s).

    Rows are first padded with `IGNORE` to a multiple of `count`. Labels are shifted before they are cut, so a slice
    loses no target at its end.

    >>> shard_sequence(np.array([[8, 9, -100, 6, -100]]), 1, 2).tolist()
    [[6, -100, -100]]

    Raises:
        ValueError: if `index` is not one of the slices.
    """
    if not 0 <= index < count:
        raise ValueError(f"index={index} is not a slice of count={count}: it goes from 0 to {count - 1}.")
    padding = -labels_BS.shape[1] % count
    padded_BS = np.pad(labels_BS, ((0, 0), (0, padding)), constant_values=IGNORE)
    size = padded_BS.shape[1] // count
    return padded_BS[:, index * size : (index + 1) * size]


def _tokens(document: Packable) -> Sequence[int] | NDArray[np.integer]:
    return document.tokens_N if isinstance(document, Sample) else document


def _learnt(documents: Sequence[Packable]) -> NDArray[np.bool_]:
    """Which tokens of these documents are learnt."""
    masks = [document.learn_N if isinstance(document, Sample) else None for document in documents]
    whole = [np.ones(len(d), bool) if mask is None else mask for d, mask in zip(documents, masks, strict=True)]
    return np.concatenate(whole)


def _problems(row: int, documents: Sequence[Packable], seq_len: int) -> list[str]:
    """What keeps the documents of one row from being packed."""
    lengths = [len(document) for document in documents]
    problems = [f"row {row}: document {i} is empty; leave it out." for i, length in enumerate(lengths) if length == 0]
    if sum(lengths) > seq_len:
        total = f"{sum(lengths)} tokens in {len(lengths)} documents"
        problems.append(f"row {row}: {total} do not fit in seq_len={seq_len}; `fit_rows` tells which do.")
    return problems
