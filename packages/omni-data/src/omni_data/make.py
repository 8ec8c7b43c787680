"""The windows of a virtual shard, as one value that any process can make them from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from omni_data.cursor import Position
from omni_data.document import Document
from omni_data.mix import Part
from omni_data.read import Turns, read_samples
from omni_data.sample import Sample, sample_of
from omni_data.window import Packing, Row, Window, read_windows

Encode = Callable[[Any], Sample]
Windows = Callable[[int, int, Position], Iterator[Window]]
"""The windows of a virtual shard and a source, by number, from a position on."""


@dataclass(frozen=True, slots=True, eq=False)
class Making:
    """Everything that fixes the windows of every virtual shard; called, it makes those of one."""

    parts: tuple[Part, ...]
    encode: Encode
    packing: Packing
    seq_len: int
    shards: int
    shuffle: bool
    seed: int

    def __call__(self, shard: int, number: int, start: Position) -> Iterator[Window]:
        """The windows of virtual shard `shard` and source `number` from `start` on. Effect: reads the source."""
        part = self.parts[number]
        turns = Turns(shard, self.shards, part.epochs, self.shuffle, self.seed)
        reads = partial(read_samples, part.source, part.encode or self.encode, turns)
        return read_windows(reads, start, self.packing, self.seq_len, seed=self.seed)


def rows_of(
    windows: Iterator[Window], start: Position, ahead: Callable[[], None] | None = None
) -> Iterator[tuple[Row | None, Position, Window | None]]:
    """The rows of `windows` from `start` on, each with the position after it, and with the window that it is the first
    of; None for a window without rows. Pure but for `ahead`.

    Args:
        windows: the first is the one that `start` is in.
        start: where the rows begin; of its window, so many are given already.
        ahead: called once half of the rows of a window are given.
    """
    here, given = start, start.given
    for window in windows:
        if not window.rows:
            yield None, window.after, window
        half = max(given + 1, len(window.rows) // 2)
        for number, row in islice(enumerate(window.rows, 1), given, None):
            if number == half and ahead is not None:
                ahead()
            after = window.after if number == len(window.rows) else here._replace(given=number)
            yield row, after, window if number == 1 else None
        here, given = window.after, 0


def encode_document(
    document: Document,
    *,
    tokenize: Callable[[str], Sequence[int]] | None = None,
    eos_id: int | None = None,
    vocab_size: int | None = None,
) -> Sample:
    """The sample of a document, all of it learnt, with `eos_id` at its end unless it is empty.

    Raises:
        ValueError: if it is text and there is no `tokenize`, or token ids, one of which is not below `vocab_size`.
    """
    tokens: Sequence[int] = () if isinstance(document, str) else document
    if isinstance(document, str) and document:
        if tokenize is None:
            raise ValueError("documents are text; give `tokenize`.")
        tokens = tokenize(document)
    elif vocab_size is not None and (largest := max(tokens, default=0)) >= vocab_size:
        raise ValueError(f"token id {largest} is beyond the vocabulary of {vocab_size} tokens.")
    return sample_of(tokens if eos_id is None or not len(tokens) else [*tokens, eos_id])
