"""The windows of a virtual shard, as one value that any process can make them from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from omni_data.cursor import Position
from omni_data.document import Document
from omni_data.mix import Part
from omni_data.read import Turns, read_samples
from omni_data.sample import Counts, Sample, sample_of
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


class Taken(NamedTuple):
    """A row of a window; the position after it; what was read for it: the rows of a window have equal shares of that;
    and why documents of the window cannot be used, with its first row. A window without rows is as one without one."""

    row: Row | None
    after: Position
    counts: Counts
    problems: tuple[str, ...]


def rows_of(windows: Iterator[Window], start: Position, ahead: Callable[[], None] | None = None) -> Iterator[Taken]:
    """The rows of `windows` from `start` on. Pure but for `ahead`.

    Args:
        windows: the first is the one that `start` is in.
        start: where the rows begin; of its window, so many are given already.
        ahead: called once half of the rows of a window are given.
    """
    here, given = start, start.given
    for window in windows:
        size = len(window.rows)
        if not size:
            yield Taken(None, window.after, window.counts, window.problems)
        half = max(given + 1, size // 2)
        for number, row in islice(enumerate(window.rows, 1), given, None):
            if number == half and ahead is not None:
                ahead()
            after = window.after if number == size else here._replace(given=number)
            counts = window.counts.share(number, size) if size > 1 else window.counts
            yield Taken(row, after, counts, window.problems if number == 1 else ())
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
