"""Which rank encodes which medium, and where its features go. Pure: the effects are in `omni_parallel.encoders`.

Images, films and sounds differ in size, and rows in how many they have. A rank that encodes its own waits for the one
that has most. Here each medium is encoded once, by whichever rank has least to do, and each of its features goes to the
one rank that has the token in whose place it comes. Where there are fewer media than ranks, a rank without any encodes
a copy that nobody takes: towers are sharded, so all ranks have to call them or none.

Dimensions: M media of all ranks, in the order of their owners; F features that a rank makes; G that it takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

SLACK = 1.02
"""How much more than the mean a rank may have to do before one of its media goes elsewhere."""


@dataclass(frozen=True, slots=True)
class Medium:
    """An image, a film or a sound, as all ranks know of it."""

    rows: tuple[int, ...]
    """How many rows of each array of its kind are its."""
    cost: float
    """Of encoding it, in any unit."""
    takers: tuple[tuple[int, int], ...]
    """(rank, features): which ranks take its features, and how many each, in the order of the features."""
    sizes: tuple[int, ...] = ()
    """What its encoder is told of its size, as numbers of the host; nothing leaves it to the arrays."""

    @property
    def features(self) -> int:
        """How many a tower makes of it."""
        return sum(count for _, count in self.takers)


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """What a rank sends, encodes and takes, of one kind of media."""

    encodes: tuple[Medium, ...]
    """In the order in which they arrive."""
    sends: tuple[int, ...]
    """Which of its own media it sends, in the order of the ranks that encode them."""
    media_going: tuple[int, ...]
    """How many of these go to each rank."""
    media_coming: tuple[int, ...]
    """How many media come from each."""
    made_F: NDArray[np.int64]
    """Which of the features that it makes are sent, in the order of the ranks that take them."""
    going: tuple[int, ...]
    """How many of these go to each rank."""
    coming: tuple[int, ...]
    """How many features come from each."""
    order_G: NDArray[np.int64]
    """Of the features that it takes, in the order of its tokens: at which place each arrives."""


def balance(costs: Sequence[float], homes: Sequence[int], ranks: int) -> list[int]:
    """Which of so many ranks does each piece of work, so that the one with most has little more than the mean.

    Largest first, to where it is if there is room, or else to the rank with least (Graham, 1969, Bounds on
    multiprocessing timing anomalies: at most 4/3 - 1/(3 ranks) of the best there is, were there no homes).

    Args:
        costs: of each piece, not negative.
        homes: the rank that each piece is on.
        ranks: how many there are.

    >>> balance([5, 1, 4, 2], [0, 0, 0, 0], 2)
    [0, 0, 1, 1]
    """
    loads = [0.0] * ranks
    doers = [0] * len(costs)
    most = max([SLACK * sum(costs) / ranks, *costs])
    for piece in sorted(range(len(costs)), key=lambda i: -costs[i]):
        home = homes[piece]
        doer = home if loads[home] + costs[piece] <= most else min(range(ranks), key=loads.__getitem__)
        loads[doer] += costs[piece]
        doers[piece] = doer
    return doers


def take_turns(places: Sequence[int] | NDArray[np.integer], size: int, ranks: Sequence[int]) -> list[tuple[int, int]]:
    """Which ranks take the features whose tokens have these places in their row, and how many each, in that order.

    Args:
        places: of the tokens of one medium in its row, ascending.
        size: tokens of a row on each rank.
        ranks: that share the row, in the order of their slices.

    >>> take_turns([2, 3, 4, 5, 6], 4, (7, 8))
    [(7, 2), (8, 3)]
    """
    slices, counts = np.unique(np.asarray(places) // size, return_counts=True)
    return [(ranks[index], count) for index, count in zip(slices.tolist(), counts.tolist(), strict=True)]


def route_media(owned: Sequence[Sequence[Medium]], rank: int) -> Route:
    """What `rank` sends, encodes and takes of the media that each rank owns: all ranks have the same idea of it."""
    ranks = len(owned)
    media = [medium for own in owned for medium in own]
    homes = [owner for owner, own in enumerate(owned) for _ in own]
    doers = balance([medium.cost for medium in media], homes, ranks)
    encoded: list[list[int]] = [[i for i, doer in enumerate(doers) if doer == r] for r in range(ranks)]
    copied: list[list[int]] = [[] for _ in range(ranks)]
    if media:
        cheapest = min(range(len(media)), key=lambda i: media[i].cost)
        copied = [[] if own else [cheapest] for own in encoded]
    first = homes.index(rank) if rank in homes else 0
    sends = [[i - first for i in encoded[r] + copied[r] if homes[i] == rank] for r in range(ranks)]
    here = encoded[rank] + copied[rank]
    # Pieces of features in the order in which a rank makes them, and who takes them.
    made: list[list[NDArray[np.int64]]] = [[] for _ in range(ranks)]
    starts = accumulate((media[i].features for i in encoded[rank]), initial=0)
    for i, start in zip(encoded[rank], starts, strict=False):
        ends = accumulate((count for _, count in media[i].takers), initial=start)
        for (taker, count), begin in zip(media[i].takers, ends, strict=False):
            made[taker].append(np.arange(begin, begin + count))
    arriving = [[i for i in encoded[r] if any(taker == rank for taker, _ in media[i].takers)] for r in range(ranks)]
    counts = {i: sum(n for taker, n in media[i].takers if taker == rank) for own in arriving for i in own}
    flat = [i for own in arriving for i in own]
    places = dict(zip(flat, accumulate((counts[i] for i in flat), initial=0), strict=False))
    return Route(
        encodes=tuple(media[i] for i in here),
        sends=tuple(i for own in sends for i in own),
        media_going=tuple(map(len, sends)),
        media_coming=tuple(sum(homes[i] == r for i in here) for r in range(ranks)),
        made_F=_join([piece for own in made for piece in own]),
        going=tuple(sum(map(len, own)) for own in made),
        coming=tuple(sum(counts[i] for i in own) for own in arriving),
        order_G=_join([np.arange(places[i], places[i] + counts[i]) for i in sorted(counts)]),
    )


def _join(pieces: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *pieces])
