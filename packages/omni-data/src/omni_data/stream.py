"""Documents to packed batches, in one global order that does not depend on who reads.

The order, from a source of n documents and V virtual shards:

1. There is an endless sequence of documents t = 0, 1, 2, ...: in epoch t // n, document `permute(t % n)` of the source,
   by another bijection in every epoch.
2. Virtual shard v reads documents v, v + V, v + 2V, ... and lays them end to end in rows of exactly S tokens. A
   document that does not fit is split; the rest opens the shard's next row, as a document of its own.
3. Global row g is the next row of virtual shard g mod V. Rank r of R takes the rows with g mod R = r, in order.

R divides V, so a rank reads its own virtual shards only, and a run of global rows is the same rows for every R and for
every way to cut them in batches. Where the stream stands is one position per virtual shard (`Cursor`), which any other
R can resume from: only the documents in progress are read again.

Dimensions: B rows of a batch, S tokens a row.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from omni_data.cursor import Cursor
from omni_data.document import Source
from omni_data.order import permute
from omni_data.pack import Batch, pack_batch

T = TypeVar("T")
Stream = Iterator[tuple[T, Cursor]]
"""Items, each with the cursor from which the stream continues after it."""

Tokens = NDArray[np.int32]
Position = tuple[int, int]
"""Documents consumed, and tokens used of the one in progress."""

_PATIENCE = 20
"""Epochs of documents without a token, in a row, after which a virtual shard gives up. With a single document that is
not empty, a shuffled shard misses it that often by chance once in e^20 runs."""


def stream_batches(
    source: Source,
    cursor: Cursor,
    *,
    shard: int,
    num_shards: int,
    rows: int,
    seq_len: int,
    tokenize: Callable[[str], Sequence[int]] | None = None,
    eos_id: int | None = None,
    virtual_shards: int = 240,
    shuffle: bool = True,
    seed: int = 0,
) -> Stream[Batch]:
    """The batches of one rank from `cursor` on, without end, each with the cursor after it. Effect: reads the source.

    Every row is full: B x S tokens and no padding. The other arguments must be those of the run that made the cursor,
    but for `shard`, `num_shards`, `rows` and `seq_len`.

    Args:
        source: documents, text or token ids; those without a token are skipped.
        cursor: where to continue, merged from all ranks (`merge_cursors`); `Cursor()` is the start.
        shard: r, which of the ranks that read different rows (dp) this is.
        num_shards: R, how many such ranks there are.
        rows: B, rows of a batch of this rank.
        seq_len: S.
        tokenize: text to token ids; not needed where documents are token ids.
        eos_id: the token appended to every document.
        virtual_shards: V, a multiple of every R that this run will ever have.
        shuffle: whether each epoch is permuted.
        seed: of the permutations.

    Raises:
        ValueError: at once if the arguments contradict each other, with all problems; from the stream if a document
            cannot be read, or there are no tokens.
    """
    layout = {"shard": shard, "num_shards": num_shards, "rows": rows, "seq_len": seq_len}
    if problems := _problems(len(source), cursor, virtual_shards=virtual_shards, **layout):
        raise ValueError("\n".join(problems))

    def read(t: int) -> Tokens:
        epoch, i = divmod(t, len(source))
        document = source[permute(i, len(source), (seed, epoch)) if shuffle else i]
        if isinstance(document, str) and document:
            if tokenize is None:
                raise ValueError(f"{source.name}: documents are text; give `tokenize`.")
            document = tokenize(document)
        tokens = np.fromiter(document, np.int32, len(document))
        return tokens if eos_id is None or not len(tokens) else np.append(tokens, np.int32(eos_id))

    def read_shard(shard: int, position: Position) -> Iterator[tuple[list[Tokens], Position]]:
        documents = _find_documents(source, lambda k: read(shard + k * virtual_shards), position[0], shard)
        return _split_rows(documents, position, seq_len)

    def batches() -> Stream[Batch]:
        positions = list(cursor.positions) or [(0, 0)] * virtual_shards
        opened: dict[int, Iterator[tuple[list[Tokens], Position]]] = {}
        for start in count(cursor.rows, rows * num_shards):
            packed: list[list[Tokens]] = []
            for row in range(start + shard, start + rows * num_shards, num_shards):
                at = row % virtual_shards
                if at not in opened:
                    opened[at] = read_shard(at, positions[at])
                pieces, positions[at] = next(opened[at])
                packed.append(pieces)
            yield pack_batch(packed, seq_len), Cursor(start + rows * num_shards, tuple(positions))

    return batches()


def _find_documents(
    source: Source, read: Callable[[int], Tokens], start: int, shard: int
) -> Iterator[tuple[int, Tokens]]:
    """The documents of a virtual shard that have tokens, from its `start`-th on, each with its number in the shard."""
    empty = 0
    for k in count(start):
        tokens = read(k)
        if len(tokens):
            empty = 0
            yield k, tokens
        elif (empty := empty + 1) >= _PATIENCE * len(source):
            raise ValueError(
                f"{source.name}: virtual shard {shard} read {empty} documents in a row without a token; "
                f"the source has {len(source)}. Leave the empty ones out."
            )


def _split_rows(
    documents: Iterator[tuple[int, Tokens]], position: Position, seq_len: int
) -> Iterator[tuple[list[Tokens], Position]]:
    """Documents end to end, cut every `seq_len` tokens; with each row, the position after it."""
    number, used = position
    tokens: Tokens | None = None
    if used:
        resumed, (number, tokens) = number, next(documents)
        if number != resumed or used >= len(tokens):
            raise ValueError(
                f"the cursor has used {used} tokens of a document that does not have more than that: "
                "the source or its tokenizer is not the one that the cursor was made with."
            )
    while True:
        pieces: list[Tokens] = []
        free = seq_len
        while free:
            if tokens is None:
                number, tokens = next(documents)
            piece = tokens[used : used + free]
            pieces.append(piece)
            used, free = used + len(piece), free - len(piece)
            if used == len(tokens):
                number, used, tokens = number + 1, 0, None
        yield pieces, (number, used)


def _problems(
    documents: int, cursor: Cursor, *, shard: int, num_shards: int, rows: int, seq_len: int, virtual_shards: int
) -> list[str]:
    """Everything that keeps a stream from starting."""
    sizes = {"num_shards": num_shards, "rows": rows, "seq_len": seq_len, "virtual_shards": virtual_shards}
    problems = [f"{name}={size} must be at least 1." for name, size in sizes.items() if size < 1]
    if not documents:
        problems.append("the source has no documents.")
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
    if cursor.positions and len(cursor.positions) != virtual_shards:
        problems.append(
            f"the cursor is of {len(cursor.positions)} virtual shards, this stream has {virtual_shards}: "
            f"take virtual_shards={len(cursor.positions)}."
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
