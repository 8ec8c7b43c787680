"""Several sources mixed by weight. Pure: which source the next row is from is a formula of its number.

Weights are shares of rows; of tokens, too, where rows are full, however long documents are. Row g takes the point g
times the golden ratio, modulo one, of a sequence that is spread evenly over [0, 1) however far it is followed
(Kronecker's). The point falls in the interval of one source; intervals are as wide as weights.
"""

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Any

from omni_data.document import Source
from omni_data.read import Streamed
from omni_data.sample import Sample

_WORD = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15
"""The fractional part of the golden ratio, times 2^64."""

Weight = float | tuple[tuple[float, float], ...]
"""A share of the rows, in units of whatever the others use; or points (tokens read by the whole run, weight), between
which it changes linearly, and before and after which it stays."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A source in a mix.

    Attributes:
        source: its documents.
        weight: its share.
        epochs: how often it is read. Left out: without end.
        key: what a cursor calls it, which must stay the same for as long as a run goes on; its name if left out.
        encode: what makes a sample of its items. Left out: what the stream has.
    """

    source: Source[Any] | Streamed[Any]
    weight: Weight = 1.0
    epochs: int | None = None
    key: str | None = None
    encode: Callable[[Any], Sample] | None = None

    @property
    def name(self) -> str:
        """What a cursor calls it."""
        return self.source.name if self.key is None else self.key


def weight_at(weight: Weight, tokens: float) -> float:
    """A weight once the whole run has read so many tokens.

    >>> [weight_at(((100, 1.0), (200, 0.5)), at) for at in (0, 150, 900)]
    [1.0, 0.75, 0.5]
    """
    if not isinstance(weight, tuple):
        return weight
    if tokens < weight[0][0]:
        return weight[0][1]
    for (start, low), (stop, high) in pairwise(weight):
        if tokens < stop:
            return low + (high - low) * (tokens - start) / (stop - start)
    return weight[-1][1]


def weights_at(weights: Sequence[Weight], tokens: float) -> list[float]:
    """All of them after so many tokens. While none is above zero, those of the first point where one is; zeros if there
    is no such point.

    >>> later = ((1000, 0.0), (2000, 1.0))
    >>> weights_at([0.5, later], 0), weights_at([0.0, later], 0), weights_at([0.0, 0.0], 0)
    ([0.5, 0.0], [0.0, 1.0], [0.0, 0.0])
    """
    now = [weight_at(weight, tokens) for weight in weights]
    if any(now):
        return now
    points = sorted({at for weight in weights if isinstance(weight, tuple) for at, _ in weight if at > tokens})
    later = ([weight_at(weight, at) for weight in weights] for at in points)
    return next(filter(any, later), now)


def pick_part(row: int, weights: Sequence[float]) -> int:
    """The source that global row `row` is from, of those with such weights.

    >>> [pick_part(row, [0.5, 0.25, 0.25]) for row in range(8)]
    [0, 1, 0, 2, 0, 0, 1, 0]
    """
    point = row * _GOLDEN % _WORD / _WORD * sum(weights)
    for i, weight in enumerate(weights):
        if point < weight:
            return i
        point -= weight
    return max(i for i, weight in enumerate(weights) if weight > 0)


def parse_weight(text: str) -> Weight:
    """A weight as people write it: a number, or `weight@tokens` points separated by commas.

    >>> parse_weight("0.3"), parse_weight("1@0,0.2@5e9")
    (0.3, ((0.0, 1.0), (5000000000.0, 0.2)))

    Raises:
        ValueError: if it is neither.
    """
    try:
        if "@" not in text:
            return float(text)
        points = (point.split("@") for point in text.split(","))
        return tuple((float(tokens), float(weight)) for weight, tokens in points)
    except ValueError:
        hint = "a weight is a number, or a schedule of weight@tokens points, as 1@0,0.2@5e9"
        raise ValueError(f"{text!r}: {hint}.") from None


def mix_problems(parts: Sequence[Part]) -> list[str]:
    """Everything that is wrong with a mix. Pure."""
    problems = [
        f"{p.source.name}: the source has no documents." for p in parts if isinstance(p.source, Sized) and not p.source
    ]
    keys = [part.name for part in parts]
    twice = sorted({part.source.name for part in parts if keys.count(part.name) > 1})
    problems += [f"{name!r} is in the mix twice: give it once, with the sum of the weights." for name in twice]
    for part in parts:
        points = part.weight if isinstance(part.weight, tuple) else ((0.0, part.weight),)
        if not points or any(not isfinite(weight) or weight < 0 for _, weight in points):
            problems.append(f"{part.source.name}: weight {part.weight} must be numbers that are not negative.")
        elif any(a >= b for (a, _), (b, _) in pairwise(points)):
            problems.append(f"{part.source.name}: the tokens of a schedule must increase, got {part.weight}.")
        if part.epochs is not None and part.epochs < 1:
            problems.append(f"{part.source.name}: epochs={part.epochs} must be at least 1.")
    starts = sorted({point[0] for part in parts if isinstance(part.weight, tuple) for point in part.weight} | {0.0})
    if not problems:
        idle = [at for at in starts if not sum(weight_at(part.weight, at) for part in parts)]
        problems += [f"no source has a weight above zero after {at:g} tokens." for at in idle[:1]]
    return problems
