"""Documents laid end to end in rows of one length, and back. Pure: arrays in, arrays out.

Dimensions: B rows, S tokens a row, s = ceil(S / count) tokens of one slice of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORE = -100  # The label of a position that has nothing to predict; torch's cross entropy skips it.


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B packed rows. All arrays are int64 of shape (B, S).

    Attributes:
        tokens_BS: token ids.
        positions_BS: 0, 1, 2, ... from the start of each document.
        segments_BS: 1, 2, ... for the documents of a row, 0 for padding.
        labels_BS: the next token of the same document, already shifted; `IGNORE` where there is none.
    """

    tokens_BS: NDArray[np.int64]
    positions_BS: NDArray[np.int64]
    segments_BS: NDArray[np.int64]
    labels_BS: NDArray[np.int64]


def pack_batch(
    rows: Sequence[Sequence[Sequence[int] | NDArray[np.integer]]], seq_len: int, *, pad_id: int = 0
) -> Batch:
    """The rows as one batch: documents end to end, then padding.

    >>> pack_batch([[[7, 8, 9], [5, 6]]], 6).labels_BS.tolist()
    [[8, 9, -100, 6, -100, -100]]

    Args:
        rows: for each of B rows, its documents, each a sequence or an array of token ids.
        seq_len: S; the lengths of a row's documents sum to at most this.
        pad_id: the token written after the last document.

    Raises:
        ValueError: if a row's documents do not fit, or one of them is empty.
    """
    if problems := [p for row, documents in enumerate(rows) for p in _problems(row, documents, seq_len)]:
        raise ValueError("\n".join(problems))
    batch = Batch(*(np.full((len(rows), seq_len), fill, np.int64) for fill in (pad_id, 0, 0, IGNORE)))
    for row, documents in enumerate(rows):
        if not documents:
            continue
        lengths = np.array([len(document) for document in documents])
        stops, used = lengths.cumsum(), lengths.sum()
        tokens = np.concatenate([np.asarray(document, np.int64) for document in documents])
        batch.tokens_BS[row, :used] = tokens
        batch.positions_BS[row, :used] = np.arange(used) - np.repeat(stops - lengths, lengths)
        batch.segments_BS[row, :used] = np.repeat(np.arange(1, len(documents) + 1), lengths)
        batch.labels_BS[row, : used - 1] = tokens[1:]
        batch.labels_BS[row, stops - 1] = IGNORE
    return batch


def unpack_batch(batch: Batch) -> list[list[list[int]]]:
    """The rows that `pack_batch` was given: its exact inverse.

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


def _problems(row: int, documents: Sequence[Sequence[int] | NDArray[np.integer]], seq_len: int) -> list[str]:
    """What keeps the documents of one row from being packed."""
    lengths = [len(document) for document in documents]
    problems = [f"row {row}: document {i} is empty; leave it out." for i, length in enumerate(lengths) if length == 0]
    if sum(lengths) > seq_len:
        total = f"{sum(lengths)} tokens in {len(lengths)} documents"
        problems.append(f"row {row}: {total} do not fit in seq_len={seq_len}; `fit_rows` tells which do.")
    return problems
