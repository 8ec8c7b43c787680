"""Documents to packed batches, in one global order that does not depend on who reads.

1. Global row g belongs to virtual shard g mod V. Rank r of R takes the rows with g mod R = r, in order; R divides V, so
   a rank reads its own virtual shards only.
2. Which of several sources it is from is a formula of g and of their names (`mix`), not of the order they are given in.
3. It is the next row that the virtual shard makes of that source: of its documents (`read`), packed (`window`).

So a run of global rows is the same rows for every R, for every way to cut them in batches, and for every number of
processes that make them. Where the stream stands is one position per source and virtual shard (`Cursor`), which any
other R can resume from: only the window in progress is made again.

Dimensions: B rows of a batch, S tokens a row.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from typing import Any, Literal, TypeVar

from omni_data.cursor import Cursor, Position, with_sources
from omni_data.document import Source
from omni_data.make import Encode, Making, Taken, Windows, encode_document, rows_of
from omni_data.mix import Part, mix_problems, pick_part, weights_at
from omni_data.pack import Batch, pack_batch
from omni_data.sample import Counts
from omni_data.window import Packing, Row
from omni_data.workers import Lane, start_workers

T = TypeVar("T")
Stream = Iterator[tuple[T, Cursor]]
"""Items, each with the cursor from which the stream continues after it."""

CONCAT = Packing()
"""Documents end to end."""
_SHOWN = 5


class NoRows(ValueError):
    """A rank read data from its start to its end, and no row could be made of it. Other ranks may have had some."""


def stream_batches(
    source: Source[Any] | Sequence[Part],
    cursor: Cursor,
    *,
    shard: int,
    num_shards: int,
    rows: int,
    seq_len: int,
    tokenize: Callable[[str], Sequence[int]] | None = None,
    eos_id: int | None = None,
    encode: Encode | None = None,
    packing: Packing = CONCAT,
    until: Literal["first", "all"] = "first",
    virtual_shards: int = 240,
    shuffle: bool = True,
    seed: int = 0,
    max_bad: int = 0,
    workers: int = 0,
) -> Stream[Batch]:
    """The batches of one rank from `cursor` on, each with the cursor after it. Effect: reads the sources.

    Without limits on epochs there is no end. The other arguments must be those of the run that made the cursor, but for
    `shard`, `num_shards`, `rows`, `max_bad` and `workers`; and `seq_len`, where documents are laid end to end.

    Args:
        source: documents, text or token ids; or several sources in a mix.
        cursor: where to continue, merged from all ranks (`merge_cursors`); `Cursor()` is the start.
        shard: r, which of the ranks that read different rows (dp) this is.
        num_shards: R, how many such ranks there are.
        rows: B, rows of a batch of this rank.
        seq_len: S.
        tokenize: text to token ids; not needed where documents are token ids.
        eos_id: the token appended to every document.
        encode: an item of a source to a sample, instead of these two.
        packing: how documents share rows.
        until: where epochs are limited, a virtual shard ends once its `first` source is through, or once `all` are,
            while the others take the place of those that are, also where their weight is zero still.
        virtual_shards: V, a multiple of every R that this run will ever have.
        shuffle: whether each epoch is permuted.
        seed: of the permutations.
        max_bad: documents that cannot be used and are left out, by this rank, each counted once; one more is an error.
        workers: processes that read, encode and pack; with 0 the caller does.

    Raises:
        ValueError: at once if the arguments contradict each other, with all problems; from the stream if a document
            cannot be read, or there are no tokens. `NoRows`, if all that this rank has was read and left out.
    """
    parts = tuple(source) if isinstance(source, Sequence) else (Part(source, key=""),)
    layout = {"shard": shard, "num_shards": num_shards, "rows": rows, "seq_len": seq_len}
    problems = mix_problems(parts) if parts else ["there is no source."]
    if problems := problems + _problems(cursor, virtual_shards=virtual_shards, **layout):
        raise ValueError("\n".join(problems))
    encode = encode or partial(encode_document, tokenize=tokenize, eos_id=eos_id)
    making = Making(parts, encode, packing, seq_len, virtual_shards, shuffle, seed)
    by_name = sorted(range(len(parts)), key=lambda i: parts[i].name)
    taking = _Taking(parts, until, virtual_shards, shard, num_shards, rows, seq_len, max_bad, cursor, by_name)
    return _batches(making, taking, cursor, workers)


@dataclass(frozen=True, slots=True)
class _Taking:
    """Which rows a rank takes, of windows that anyone makes."""

    parts: tuple[Part, ...]
    until: Literal["first", "all"]
    shards: int
    shard: int
    num_shards: int
    rows: int
    seq_len: int
    max_bad: int
    begun: Cursor
    by_name: Sequence[int]

    def numbers(self, start: int, rows: int) -> range:
        """The next `rows` global rows of this rank, after `start` rows of all ranks."""
        return range(start + self.shard, start + rows * self.num_shards, self.num_shards)

    def pick(self, row: int, over: set[int]) -> int | None:
        """The source of global row `row`, none of those that are over in its virtual shard; None if that ended.

        It never comes back: a shard whose sources have no weight yet reads them all the same, or whether it ended would
        depend on the rows until then.
        """
        if over and (self.until == "first" or len(over) == len(self.parts)):
            return None
        # By name, so that it does not matter in which order they are given.
        order = self.by_name
        left = [0.0 if i in over else self.parts[i].weight for i in order]
        tokens = self.begun.tokens_before(self.seq_len) + (row - self.begun.rows) * self.seq_len
        weights = weights_at(left, tokens)
        return order[pick_part(row, weights)] if any(weights) else None


def _batches(making: Making, taking: _Taking, cursor: Cursor, workers: int) -> Stream[Batch]:
    # Also of sources that may come back.
    known = with_sources(cursor, [part.name for part in taking.parts], taking.shards)
    positions = {key: list(each) for key, each in known.positions.items()}
    over = {
        shard: {i for i, part in enumerate(taking.parts) if _is_over(part, positions[part.name][shard])}
        for shard in range(taking.shard, taking.shards, taking.num_shards)
    }
    lanes: dict[tuple[int, int], Iterator[Taken]] = {}
    bad: dict[str, None] = {}  # By what is said of each, with its place: a document that is read again is the same.
    found, read = False, Counts()

    with ExitStack() as stack:
        windows: Windows = making
        if workers:
            windows = stack.enter_context(closing(start_workers(making, workers, ranks=taking.num_shards)))

        def lane(shard: int, number: int) -> Iterator[Taken]:
            if (shard, number) not in lanes:
                at = positions[taking.parts[number].name][shard]._replace(ended=0)
                made = windows(shard, number, at._replace(given=0))
                lanes[shard, number] = rows_of(made, at, made.ahead if isinstance(made, Lane) else None)
            return lanes[shard, number]

        def take(row: int) -> tuple[Row, int, Counts]:
            shard, counts = row % taking.shards, Counts()
            while (number := taking.pick(row, over[shard])) is not None:
                part = taking.parts[number]
                if taken := next(lane(shard, number), None):
                    documents, positions[part.name][shard], more, problems = taken
                    counts += more
                    if problems:
                        bad.update(dict.fromkeys(problems))
                        _check_bad([*bad], taking.max_bad)
                    if documents is not None:
                        return documents, number, counts
                else:
                    over[shard].add(number)
                    at = positions[part.name][shard]
                    positions[part.name][shard] = at._replace(ended=part.epochs or 0)
            return [], -1, counts

        def is_over(start: int) -> bool:
            rows = taking.numbers(start, len(over))
            return all(taking.pick(row, over[row % taking.shards]) is None for row in rows)

        for start in count(cursor.rows, taking.rows * taking.num_shards):
            if is_over(start):
                break
            if workers:  # Those soon to be needed are asked for, so that all workers have something to do.
                for row in taking.numbers(start, max(taking.rows, 2 * workers)):
                    number = taking.pick(row, over[row % taking.shards])
                    if number is not None:
                        lane(row % taking.shards, number)
            known_bad = len(bad)
            taken = [take(row) for row in taking.numbers(start, taking.rows)]
            found |= any(documents for documents, _, _ in taken)
            counts = sum((counts for _, _, counts in taken), Counts())
            read += counts
            batch = pack_batch(
                [documents for documents, _, _ in taken],
                taking.seq_len,
                sources=[number for _, number, _ in taken],
                counts=counts,
                problems=tuple(islice(bad, known_bad, None)),
            )
            after = {key: tuple(each) for key, each in positions.items()}
            done = cursor.after(start + taking.rows * taking.num_shards - cursor.rows, taking.seq_len)
            yield batch, replace(done, positions=after)
        if not found and read != Counts() and cursor == Cursor():
            raise NoRows(_tell_none(read, [*bad]))


def _is_over(part: Part, at: Position) -> bool:
    """Whether the source is through in a virtual shard that stands there, and not to be read more often now."""
    return part.epochs is not None and 0 < part.epochs <= at.ended


def _check_bad(bad: Sequence[str], most: int) -> None:
    """Raises `ValueError` with the first of them if there are more than `most` documents that cannot be used."""
    if len(bad) > most:
        if not most:
            raise ValueError(f"{bad[0]}\nmax_bad=N leaves out up to N documents that cannot be used.")
        told = "".join(f"\n  {problem}" for problem in bad[:_SHOWN])
        raise ValueError(f"{len(bad)} documents cannot be used, of max_bad={most}:{told}")


def _tell_none(read: Counts, bad: Sequence[str]) -> str:
    """Why there is no row, of what was read, and the first of what cannot be used."""
    ways = {"are longer than allowed and dropped": read.dropped, "are empty": read.empty, "cannot be used": read.bad}
    told = ", ".join(f"{count} {way}" for way, count in ways.items() if count)
    each = "".join(f"\n  {problem}" for problem in bad[:_SHOWN])
    return f"none of the documents can be used, of {sum(ways.values())} that were read: {told}{':' * bool(each)}{each}"


def _problems(
    cursor: Cursor, *, shard: int, num_shards: int, rows: int, seq_len: int, virtual_shards: int
) -> list[str]:
    """Everything that keeps a stream from starting."""
    sizes = {"num_shards": num_shards, "rows": rows, "seq_len": seq_len, "virtual_shards": virtual_shards}
    problems = [f"{name}={size} must be at least 1." for name, size in sizes.items() if size < 1]
    if num_shards < 1 or virtual_shards < 1:
        return problems
    if not 0 <= shard < num_shards:
        problems.append(f"shard={shard} must be from 0 to {num_shards - 1}, as num_shards={num_shards}.")
    if virtual_shards % num_shards:
        more = _nearest(range(num_shards, virtual_shards + num_shards + 1, num_shards), virtual_shards)
        fewer = _nearest([d for d in range(1, virtual_shards + 1) if virtual_shards % d == 0], num_shards)
        problems.append(
            f"virtual_shards={virtual_shards} is not a multiple of num_shards={num_shards}: take "
            f"virtual_shards={more} (from the start of a run), or num_shards={fewer}."
        )
    if others := sorted({len(each) for each in cursor.positions.values()} - {virtual_shards}):
        problems.append(
            f"the cursor is of {others[0]} virtual shards, this stream has {virtual_shards}: "
            f"take virtual_shards={others[0]}."
        )
    if cursor.rows and not cursor.positions:
        problems.append(f"the cursor is after {cursor.rows} rows but has no positions; the start is Cursor().")
    if cursor.rows % num_shards:
        even = [d for d in range(1, virtual_shards + 1) if virtual_shards % d == cursor.rows % d == 0]
        problems.append(
            f"the cursor is after {cursor.rows} rows, which num_shards={num_shards} ranks cannot have shared "
            f"evenly: take num_shards={_nearest(even, num_shards)}."
        )
    return problems


def _nearest(numbers: Iterable[int], to: int) -> str:
    """The nearest number on each side of `to`, which is none of them."""
    below, above = [n for n in numbers if n < to], [n for n in numbers if n > to]
    return " or ".join(str(n) for n in (*below[-1:], *above[:1]))
