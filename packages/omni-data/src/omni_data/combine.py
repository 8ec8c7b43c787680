"""Sources made of sources: one after the other, the first items of one, each item through a function. Pure."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Generic, TypeVar, overload

from omni_data.document import Source, T_co, place_of
from omni_data.read import Streamed, Unread, decoded

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Concatenated(Generic[T_co]):
    """Sources one after the other, as one."""

    name: str
    parts: tuple[Source[T_co], ...]
    stops: tuple[int, ...]

    def __len__(self) -> int:
        return self.stops[-1] if self.stops else 0

    def __getitem__(self, i: int, /) -> T_co:
        part, i = self._find(i)
        return self.parts[part][i]

    def place(self, i: int) -> str:
        part, i = self._find(i)
        return place_of(self.parts[part], i)

    def _find(self, i: int) -> tuple[int, int]:
        i = range(len(self))[i]
        part = bisect_right(self.stops, i)
        return part, i - (self.stops[part - 1] if part else 0)


def concatenate(name: str, parts: Sequence[Source[T]]) -> Source[T]:
    """The sources one after the other."""
    return Concatenated(name, tuple(parts), tuple(accumulate(map(len, parts))))


@dataclass(frozen=True, slots=True, eq=False)
class Beginning(Generic[T_co]):
    """The first items of a source."""

    source: Source[T_co]
    count: int

    @property
    def name(self) -> str:
        return self.source.name

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def __getitem__(self, i: int, /) -> T_co:
        return self.source[range(len(self))[i]]

    def place(self, i: int) -> str:
        return place_of(self.source, range(len(self))[i])


def beginning(source: Source[T], count: int) -> Source[T]:
    """The first `count` items of `source`, or as many as it has.

    >>> from omni_data.document import Documents
    >>> list(beginning(Documents("letters", ["a", "b", "c"]), 2))
    ['a', 'b']
    """
    return Beginning(source, count)


@dataclass(frozen=True, slots=True, eq=False)
class Mapped(Generic[T_co]):
    """The items of a source, each through `f` when it is read."""

    source: Source[Any]
    f: Callable[[Any], T_co]

    @property
    def name(self) -> str:
        return self.source.name

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int, /) -> T_co:
        item = self.source[i]  # What is wrong here, the source has placed already.
        return _through(self.f, item, lambda: self.place(i))

    def place(self, i: int) -> str:
        return place_of(self.source, range(len(self))[i])


@dataclass(frozen=True, slots=True, eq=False)
class MappedStream(Generic[T_co]):
    """The items of a streamed source, each through `f` when it is decoded."""

    source: Streamed[Any]
    f: Callable[[Any], T_co]

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def parts(self) -> int:
        return self.source.parts

    def version(self) -> str:
        return getattr(self.source, "version", str)()

    def read(self, part: int, state: Any, /) -> Iterator[tuple[Unread[T_co], Any]]:
        for item, after in self.source.read(part, state):
            place = item.place if isinstance(item, Unread) else f"{self.name}: part {part}"
            yield Unread(place, partial(self._decoded, item, place)), after

    def _decoded(self, item: Any, place: str) -> T_co:
        return _through(self.f, decoded(item), lambda: place)


@overload
def mapped(source: Source[S], f: Callable[[S], T]) -> Source[T]: ...
@overload
def mapped(source: Streamed[S], f: Callable[[S], T]) -> Streamed[T]: ...
def mapped(source: Source[Any] | Streamed[Any], f: Callable[[Any], Any]) -> Any:
    """`f` of every item of `source`, computed when it is read.

    A ValueError of `f` is raised with the place of the item before it, any other error with the place as a note. It
    pickles where `source` and `f` do.

    >>> from omni_data.document import Documents
    >>> list(mapped(Documents("numbers", ["1", "2"]), int))
    [1, 2]
    """
    return Mapped(source, f) if isinstance(source, Sized) else MappedStream(source, f)


def _through(f: Callable[[Any], T], item: Any, place: Callable[[], str]) -> T:
    """`f` of the item; what goes wrong, with its place."""
    try:
        return f(item)
    except ValueError as error:
        raise ValueError(f"{place()}: {error}") from error
    except Exception as error:
        error.add_note(f"The item is {place()}.")
        raise
