"""The documents of one virtual shard, without end or for some epochs, from any place on.

There is an endless sequence of documents t = 0, 1, 2, ...: in epoch t // n, document `permute(t % n)` of the source, by
another bijection in every epoch. Virtual shard v of V reads documents v, v + V, v + 2V, ...

A source without a length has parts instead, files for example, which take the place of documents in that sequence; a
shard reads its parts one after the other, in blocks of `BLOCK` documents, each in an order of its own. Where there are
fewer parts than virtual shards, several shards share a part and each takes every so-many-th block of it.

A document that cannot be used is told, not raised: whoever reads decides how many of them are too many.
"""

from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from itertools import count, islice
from math import gcd
from typing import Any, Generic, Protocol, TypeVar, cast

from omni_data.document import Source, place_of
from omni_data.order import permutation
from omni_data.sample import Sample

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

BLOCK = 256
"""Documents that are shuffled together where there is no random access."""

_PATIENCE, _MOST = 20, 10_000
"""Epochs, and documents, in a row that cannot be used, after which a virtual shard gives up. With a single document
that can, a shuffled shard misses it for so many epochs by chance once in e^20 runs."""


@dataclass(frozen=True, slots=True, eq=False)
class Unread(Generic[T_co]):
    """An item that was found and not decoded yet: where it is from, in the words of an error message, and what decodes
    it, which raises `ValueError`, with the place, if it cannot be used."""

    place: str
    decode: Callable[[], T_co]


class Streamed(Protocol[T_co]):
    """Items that can only be read one after the other, in parts that are independent of each other.

    It may also have a method `version() -> str`, which tells what changes when the content does (`fingerprint`).
    """

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    @property
    def parts(self) -> int:
        """How many parts there are, always in the same order."""
        ...

    def read(self, part: int, state: Any, /) -> Iterator[tuple[T_co | Unread[T_co], Any]]:
        """The items of a part from `state` on (None: its start), each with the state after it, which is plain JSON.

        What is wrong with one item is raised when it is decoded; what is raised here ends the stream.
        """
        ...


def decoded(item: T | Unread[T]) -> T:
    """The item itself, which `Streamed.read` gave.

    Raises:
        ValueError: if it cannot be used.
    """
    return cast(T, item.decode() if isinstance(item, Unread) else item)


def first_of(source: Streamed[T], part: int) -> T | None:
    """The first item of a part; None if that has none. Effect: reads it.

    Raises:
        ValueError: if it cannot be used.
    """
    for item, _ in source.read(part, None):
        return decoded(item)
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """One document that was read: its sample, or why there is none (nothing is said of one without tokens), the place
    in the source after it, and what errors call it."""

    sample: Sample | None
    after: Any
    problem: str = ""
    name: Callable[[], str] = str


@dataclass(frozen=True, slots=True)
class Turns:
    """When it is the turn of virtual shard `shard` of `shards`, in a source that is read for `epochs`, or endlessly."""

    shard: int
    shards: int
    epochs: int | None = None
    shuffle: bool = True
    seed: int = 0

    def take(self, size: int, start: int) -> Iterator[tuple[int, int, int]]:
        """From the shard's `start`-th turn on, the number of the turn, the item of `size` whose turn it is, and the
        epoch. Pure."""
        order, ordered = int, None
        for turn in count(start):
            epoch, i = divmod(self.shard + turn * self.shards, size)
            if self.epochs is not None and epoch >= self.epochs:
                return
            if self.shuffle and epoch != ordered:
                order, ordered = permutation(size, (self.seed, epoch)), epoch
            yield turn, order(i), epoch


def read_samples(
    source: Source[Any] | Streamed[Any], encode: Callable[[Any], Sample], turns: Turns, at: Any
) -> Iterator[Read]:
    """What virtual shard `turns.shard` reads from the place `at` on; 0 is the start. Effect: reads the source.

    Raises:
        ValueError: if so many documents in a row cannot be used that there may be none.
    """
    reads = (
        _read_sized(source, encode, turns, at) if isinstance(source, Sized) else _read_parts(source, encode, turns, at)
    )
    most = min(_MOST, _PATIENCE * len(source)) if isinstance(source, Sized) else _MOST
    useless, problems = 0, []
    for read in reads:
        yield read
        if read.sample is not None:
            useless, problems = 0, []
            continue
        useless += 1
        problems += [read.problem] if read.problem and len(problems) < 5 else []
        if useless >= most:
            told = "".join(f"\n  {problem}" for problem in problems) or " Leave the empty ones out."
            has = f"; the source has {len(source)}" if isinstance(source, Sized) else ""
            if isinstance(source, Sized) and not turns.shuffle:
                own = len(source) // gcd(len(source), turns.shards)
                has += f", of which this shard reads {own}, again and again, as they are not shuffled"
            raise ValueError(
                f"{source.name}: virtual shard {turns.shard} read {useless} documents in a row without a token{has}."
                f"{told}"
            )


def _read_sized(source: Source[Any], encode: Callable[[Any], Sample], turns: Turns, start: int) -> Iterator[Read]:
    for turn, i, _ in turns.take(len(source), start):
        try:
            item = source[i]
        except ValueError as problem:  # It says itself where it is from.
            yield Read(None, turn + 1, str(problem))
        else:
            yield _encoded(item, encode, lambda i=i: place_of(source, i), turn + 1)


def _read_parts(source: Streamed[Any], encode: Callable[[Any], Sample], turns: Turns, at: Any) -> Iterator[Read]:
    """A place is four values: parts done, blocks of the part done, the state where the block begins, and documents done
    of it."""
    start, block, state, done = at or (0, 0, None, 0)
    shares = -(-turns.shards // source.parts)
    idle = 0
    for turn, piece, epoch in turns.take(source.parts * shares, start):
        part, share = divmod(piece, shares)
        if (idle := idle + 1) > _PATIENCE * source.parts * shares:
            raise ValueError(
                f"{source.name}: virtual shard {turns.shard} of {turns.shards} found no document in {idle - 1} turns: "
                f"{source.parts} parts in blocks of {BLOCK} documents are too few for so many, take fewer."
            )
        items = source.read(part, state)
        while read := list(islice(items, BLOCK)):
            after = read[-1][1]
            if block % shares == share:
                idle = 0
                order = permutation(len(read), (turns.seed, epoch, piece, block)) if turns.shuffle else int
                for i in range(done, len(read)):
                    number = order(i)
                    item = read[number][0]
                    whole = i + 1 == len(read)
                    next_at = [turn, block + 1, after, 0] if whole else [turn, block, state, i + 1]
                    where = f"{source.name}: part {part}, document {block * BLOCK + number}"
                    yield _unread(item, encode, where, next_at)
            block, state, done = block + 1, after, 0
        block, state, done = 0, None, 0


def _unread(item: Any, encode: Callable[[Any], Sample], where: str, after: Any) -> Read:
    try:
        value = decoded(item)
    except ValueError as problem:  # It says itself where it is from.
        return Read(None, after, str(problem))
    return _encoded(value, encode, lambda: item.place if isinstance(item, Unread) else where, after)


def _encoded(item: Any, encode: Callable[[Any], Sample], name: Callable[[], str], after: Any) -> Read:
    try:
        sample = encode(item)
    except ValueError as problem:
        return Read(None, after, f"{name()}: {problem}", name)
    return Read(sample if len(sample) else None, after, name=name)
