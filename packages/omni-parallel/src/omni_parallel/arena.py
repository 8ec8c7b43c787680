"""Memory of the host for tensors of any sizes, which is given out and comes back in any order.

Whoever needs some gets the first gap that is large enough, as if all of it lay in one piece. Where there is none, as
much is added as is missing, so there is never more than was in use up to the last byte, and what has been added stays:
to pin it takes far longer than to copy to it.
"""

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from torch import Tensor

from omni_parallel.host import Host

ALIGNED: Final = 512
"""Bytes of which each place begins at a multiple."""
FINEST: Final = 64
"""What is added is at least this part of what there is, so that there are never many chunks."""


class Place(NamedTuple):
    """From the first byte to before the last."""

    begin: int
    end: int


class Arena:
    """Memory of the host, in chunks one after another."""

    def __init__(self, make: Callable[[int], Host]) -> None:
        """Args:
        make: of a number of bytes, memory.
        """
        self.make = make
        self.chunks: list[tuple[Place, Host]] = []
        self.taken: list[Place] = []
        """In order."""
        self.returned: deque[Place] = deque()
        """Places that nobody uses any longer, put here from whichever thread."""

    @property
    def nbytes(self) -> int:
        """Bytes that there are, in use or not."""
        return self.chunks[-1][0].end if self.chunks else 0

    def take(self, nbytes: int) -> Place:
        """A place that nobody else has until it is put into `returned`. Effect: may allocate.

        Raises:
            ValueError: of `make`, if there is no memory.
        """
        while self.returned:
            self.taken.remove(self.returned.popleft())
        begin = 0
        for place in self.taken:
            if place.begin - begin >= nbytes:
                break
            begin = place.end
        whole = Place(begin, begin - -nbytes // ALIGNED * ALIGNED)
        if (missing := whole.end - self.nbytes) > 0:
            self._add(missing)
        insort(self.taken, whole)
        return whole

    def parts(self, place: Place, nbytes: int) -> Iterator[tuple[int, int, Tensor]]:
        """The first `nbytes` bytes of `place`: from where to where, and the bytes, of each chunk that it lies in."""
        end = place.begin + nbytes
        for chunk, host in self.chunks:
            first, last = max(place.begin, chunk.begin), min(end, chunk.end)
            if first < last:
                own = host.memory[first - chunk.begin : last - chunk.begin]
                yield first - place.begin, last - place.begin, own

    def _add(self, missing: int) -> None:
        size = max(missing, self.nbytes // FINEST // ALIGNED * ALIGNED)
        self.chunks.append((Place(self.nbytes, self.nbytes + size), self.make(size)))
