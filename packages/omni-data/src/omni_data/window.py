"""Documents to rows, a window at a time: how those that are read one after the other share rows. Pure, over iterators.

A window is some rows that are packed together. Documents are taken in their order until they fill it, so a window is a
function of where it begins, and a stream that stops inside one resumes by making it again.

- concat: end to end, split where a row is full. No padding, but before documents with media, which are never split; a
  window is one row.
- fit: no document is split but those longer than a row; `fit_rows` tells which share one. The rows of a window come in
  an order of what they cost, permuted in the same way for every virtual shard: at any step, all ranks compute rows of
  about the same cost, and finish together.
- single: one document a row.

Dimensions: S tokens a row, W rows a window.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from omni_data.cursor import Position
from omni_data.fit import fit_rows
from omni_data.order import permute
from omni_data.read import Read
from omni_data.sample import Counts, Long, Sample, limit_length, part_of

WINDOW, MOST_ROWS = 65_536, 32
"""Tokens of a window, about, and rows at most: enough that what is left free at its end is little of it."""

_PATIENCE = 10_000
"""Documents that are dropped, or too long to be used, in a row before there are taken to be no others."""

Row = list[Sample]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a document costs to compute: so much a token, a squared token, and a thing that its media count (a patch),
    each in units of a token.

    Attributes:
        token: of each token.
        square: of each squared token of a document, by attention.
        media: of each thing that the media of a document count, as patches of images.
    """

    token: float = 1.0
    square: float = 1 / 50_000
    media: float = 0.25

    def of(self, row: Sequence[Sample]) -> float:
        """What a row costs. Pure."""
        return sum(
            self.token * len(sample)
            + self.square * len(sample) ** 2
            + self.media * max((len(array) for array in sample.media.values()), default=0)
            for sample in row
        )


@dataclass(frozen=True, slots=True)
class Packing:
    """How documents share rows.

    Attributes:
        how: "concat" lays them end to end, and splits them where a row is full; "fit" splits none that fits in a row,
            and fills rows as well as it can; "single" is one document a row.
        max_len: tokens of a document at most. Left out: those of a row, or any number where documents are split.
        long: what becomes of longer ones.
        cost: what a document costs.
    """

    how: Literal["concat", "fit", "single"] = "concat"
    max_len: int | None = None
    long: Long = "split"
    cost: Cost = Cost()

    def limit(self, seq_len: int) -> int | None:
        """The longest that a document may be in rows of `seq_len` tokens; None if that is any length."""
        return self.max_len if self.how == "concat" else min(seq_len, self.max_len or seq_len)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Rows that were packed together, what was read for them, what could not be, and where the next window begins. The
    last window of a source may have no rows, but documents that could not be used."""

    rows: list[Row]
    counts: Counts
    problems: tuple[str, ...]
    after: Position


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """A part of a document, or none; before and after it, the place in the source and the tokens used there."""

    sample: Sample | None
    before: tuple[Any, int]
    after: tuple[Any, int]
    counts: Counts
    problem: str = ""

    def __len__(self) -> int:
        return len(self.sample) if self.sample else 0


def read_windows(
    reads: Callable[[Any], Iterator[Read]], start: Position, packing: Packing, seq_len: int, *, seed: int = 0
) -> Iterator[Window]:
    """The windows from `start` on, until what is read ends; the last one may have fewer rows. Pure but for `reads`.

    Args:
        reads: the documents from a place in the source on.
        start: where the first window begins.
        packing: how documents share rows.
        seq_len: S.
        seed: of the order of the rows of a window.

    Raises:
        ValueError: if the document in progress is not as long as it was.
    """
    pieces = _cut_pieces(reads(start.at), start, packing, seq_len)
    if packing.how == "concat":
        return _concatenate(pieces, start, seq_len)
    return _fit(pieces, start, packing, seq_len, seed)


def _cut_pieces(reads: Iterator[Read], start: Position, packing: Packing, seq_len: int) -> Iterator[_Piece]:
    at, used, limit = start.at, start.used, packing.limit(seq_len)
    dropped = 0
    for read in reads:
        parts, problem = [], read.problem
        if read.sample is not None:
            # Of those with media no part fits that is shorter than the whole.
            most = min(seq_len, limit or seq_len) if read.sample.media else limit
            try:
                parts = limit_length(read.sample, most, packing.long)
            except ValueError as error:
                problem = f"{read.name()}: {error}"
        dropped = 0 if parts else dropped + (read.sample is not None)
        if dropped >= _PATIENCE and problem:
            raise ValueError(f"{problem}\nNone of the {dropped - 1} documents before it can be used either.")
        if dropped >= _PATIENCE:
            raise ValueError(
                f"{read.name()}: this and the {dropped - 1} documents before it are longer than {limit} tokens, and "
                "dropped: allow longer ones, or let packing.long cut them."
            )
        if used and used >= sum(map(len, parts)):
            raise ValueError(
                f"the cursor has used {used} tokens of a document that does not have more than that: "
                "the source or its tokenizer is not the one that the cursor was made with."
            )
        counts = _count(read, parts, problem) if not used else Counts()
        done = 0
        for part in parts:
            skipped = min(len(part), max(0, used - done))
            stop = done + len(part)
            if skipped < len(part):
                after = (read.after, 0) if part is parts[-1] else (at, stop)
                yield _Piece(part_of(part, skipped, len(part)), (at, done + skipped), after, counts)
                counts = Counts()
            done = stop
        if not parts:
            yield _Piece(None, (at, 0), (read.after, 0), counts, problem)
        at, used = read.after, 0


def _count(read: Read, parts: Sequence[Sample], problem: str) -> Counts:
    if read.sample is None or problem:
        return Counts(empty=int(not problem), bad=int(bool(problem)))
    if not parts:
        return Counts(dropped=1)
    return Counts(documents=1, tokens=sum(map(len, parts)), cut=int(len(parts[0]) < len(read.sample)))


def _concatenate(pieces: Iterator[_Piece], start: Position, seq_len: int) -> Iterator[Window]:
    rest: _Piece | None = None
    number = start.number
    while True:
        row: Row = []
        taken: list[_Piece] = []
        free = seq_len
        while free and (piece := next(pieces, None) if rest is None else rest) is not None:
            taken.append(piece)
            rest = None
            if piece.sample is None:
                continue
            if len(piece) > free and piece.sample.media:
                rest = taken.pop()
                break
            if len(piece) > free:
                at, used = piece.before
                here = (at, used + free)
                row.append(part_of(piece.sample, 0, free))
                rest = _Piece(part_of(piece.sample, free, len(piece)), here, piece.after, Counts())
                taken[-1] = _Piece(None, piece.before, here, piece.counts)
                free = 0
            else:
                row.append(piece.sample)
                free -= len(piece)
        number += 1
        if taken:
            yield _window([row] if row else [], taken, number)
        if free and rest is None:
            return


def _fit(pieces: Iterator[_Piece], start: Position, packing: Packing, seq_len: int, seed: int) -> Iterator[Window]:
    rows = min(MOST_ROWS, max(1, WINDOW // seq_len))
    waiting: list[_Piece] = []
    number = start.number
    while True:
        total = sum(map(len, waiting))
        usable = sum(piece.sample is not None for piece in waiting)
        single = packing.how == "single"
        while (usable < rows if single else total <= rows * seq_len) and (piece := next(pieces, None)) is not None:
            waiting.append(piece)
            total, usable = total + len(piece), usable + (piece.sample is not None)
        if not waiting:
            return
        stop = len(waiting) if single else _most_that_fit(waiting, seq_len, rows)
        taken, waiting = waiting[:stop], waiting[stop:]
        samples = [piece.sample for piece in taken if piece.sample is not None]
        groups = [[i] for i in range(len(samples))] if single else fit_rows([len(s) for s in samples], seq_len)
        packed = sorted(([samples[i] for i in group] for group in groups), key=packing.cost.of, reverse=True)
        order = (permute(i, len(packed), (seed, number)) for i in range(len(packed)))
        number += 1
        yield _window([packed[i] for i in order], taken, number)


def _most_that_fit(pieces: Sequence[_Piece], seq_len: int, rows: int) -> int:
    """How many of `pieces`, from the first on, fit in so many rows together; found by bisection."""
    lengths = [len(piece) for piece in pieces]

    def needs(stop: int) -> int:
        return len(fit_rows([length for length in lengths[:stop] if length], seq_len))

    if needs(len(lengths)) <= rows:
        return len(lengths)
    return bisect_right(range(len(lengths)), rows, key=needs) - 1


def _window(rows: list[Row], taken: Sequence[_Piece], number: int) -> Window:
    problems = tuple(piece.problem for piece in taken if piece.problem)
    at, used = taken[-1].after
    return Window(rows, sum((piece.counts for piece in taken), Counts()), problems, Position(number, at, used))
