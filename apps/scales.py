"""Numbers as people read them, and scales of charts: what part of a range a value is at, and where ticks are. Pure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

_PREFIXES: Final = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
"""As the field writes counts of tokens and parameters."""
_TIMES: Final = ((259_200, 86_400, "days"), (7_200, 3_600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))
"""From how many seconds on a range of time is told in which unit."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A range of values, and where they are in it: 0 at its begin, 1 at its end."""

    low: float
    high: float
    log: bool = False

    def place(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where `values` are in the range."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        return ((np.log10(values) if self.log else values) - low) / (high - low)


def scale_of(values: Sequence[NDArray[np.float64]], *, log: bool = False, from_zero: bool = False) -> Scale:
    """The scale that has room for all of `values`, which are finite, and on a logarithmic one positive.

    >>> scale_of([np.array([1.0, 3.0])], from_zero=True)
    Scale(low=0.0, high=3.15, log=False)
    """
    low, high = min(float(some.min()) for some in values), max(float(some.max()) for some in values)
    if log:
        room = max(high / low, 4) ** 0.05
        return Scale(low / room, high * room, log=True)
    room = 0.05 * ((high - low) or abs(high) or 1.0)
    if from_zero and low >= 0:
        return Scale(0.0, round(high + (0.05 * high or 1.0), 12))
    return Scale(low - room, high + room)


def ticks_of(scale: Scale, count: int) -> list[float]:
    """About `count` round values of a scale, from its begin to its end.

    >>> ticks_of(Scale(0.0, 215.0), 5), ticks_of(Scale(0.9, 120.0, log=True), 5)
    ([0.0, 50.0, 100.0, 150.0, 200.0], [1.0, 10.0, 100.0])
    """
    if scale.log:
        powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
        fine = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        inside = [tick for tick in fine if scale.low <= tick <= scale.high]
        if len(inside) > count + 1:
            whole = [10.0**power for power in powers if scale.low <= 10.0**power <= scale.high]
            return whole[:: -(-len(whole) // count)]
        if len(inside) > 2:
            return inside
    power = 10.0 ** math.floor(math.log10((scale.high - scale.low) / count))
    steps = [digit * power for digit in (0.5, 1, 2, 5, 10)]
    step = min(steps, key=lambda step: abs(_count(scale, step) - count))
    first = math.ceil(scale.low / step - 1e-9)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, first + _count(scale, step))]


def _count(scale: Scale, step: float) -> int:
    """How many multiples of `step` are in a scale."""
    return math.floor(scale.high / step + 1e-9) - math.ceil(scale.low / step - 1e-9) + 1


def words_of(ticks: Sequence[float]) -> list[str]:
    """Labels of ticks, which belong together: with as many digits as tell them apart.

    >>> words_of([0.0, 50_000.0, 100_000.0]), words_of([0.0, 0.5, 1.0]), words_of([5e-5, 1e-4])
    (['0', '50k', '100k'], ['0', '0.5', '1.0'], ['5e-5', '1e-4'])
    >>> words_of([1.0, 10.0, 100.0]), words_of([1_000.0, 1_500.0])
    (['1', '10', '100'], ['1.0k', '1.5k'])
    """
    steps = [b - a for a, b in pairwise(ticks)] or [abs(ticks[0])]
    if any(0 < abs(tick) < 1e-3 or abs(tick) >= 1e15 for tick in ticks):
        return _first_true(ticks, steps, _with_power)
    if max(steps) > 1.5 * min(steps):
        return [short(tick) for tick in ticks]
    scale, prefix = next(((scale, name) for scale, name in _PREFIXES if max(map(abs, ticks)) >= scale), (1.0, ""))
    return _first_true(ticks, steps, lambda tick, digits: f"{tick / scale:.{digits}f}", scale, prefix)


def _first_true(
    ticks: Sequence[float],
    steps: Sequence[float],
    tell: Callable[[float, int], str],
    scale: float = 1.0,
    prefix: str = "",
) -> list[str]:
    """Labels with the fewest digits that still say where ticks are, to a hundredth of what is between them."""
    near = min(steps) / 100
    told = ([tell(tick, digits) for tick in ticks] for digits in range(17))
    true = (some for some in told if all(abs(float(a) * scale - b) <= near for a, b in zip(some, ticks, strict=True)))
    return [f"{label}{prefix}" if tick else "0" for label, tick in zip(next(true), ticks, strict=True)]


def short(value: float, digits: int = 4) -> str:
    """A number with so many digits at most.

    >>> short(1234567.0), short(2.30258, 3), short(0.00094417), short(0), short(-1500), short(3e20)
    ('1.235M', '2.3', '9.442e-4', '0', '-1.5k', '3e20')
    """
    if not value or not math.isfinite(value):
        return f"{value:g}"
    scale, prefix = next(((scale, name) for scale, name in _PREFIXES if abs(value) >= scale), (1.0, ""))
    return f"{value / scale:.{digits}g}{prefix}" if 1e-3 <= abs(value) < 1e15 else _with_power(value, digits - 1)


def _with_power(value: float, digits: int) -> str:
    """A small or huge number, with so many digits after the first at most.

    >>> _with_power(0.0005, 3), _with_power(0.00012345, 2)
    ('5e-4', '1.23e-4')
    """
    mantissa, power = f"{value:.{digits}e}".split("e")
    return f"{float(mantissa):.16g}e{int(power)}"


def time_unit(seconds: float) -> tuple[float, str]:
    """The seconds of a unit in which a time of so many is told, and its name.

    >>> time_unit(90), time_unit(9_000)
    ((1, 'seconds'), (3600, 'hours'))
    """
    return next((unit, name) for least, unit, name in _TIMES if seconds >= least)


def clock(seconds: float) -> str:
    """A duration as h:mm:ss.

    >>> clock(3661)
    '1:01:01'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
