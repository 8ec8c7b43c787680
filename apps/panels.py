"""From what runs have left to the lines of charts: which quantities share a chart, what is smoothed, and which points
of many are drawn. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from columns import Column, Table
from history import History
from numpy.typing import NDArray
from quantities import AXES, Group, Quantity, order_of, quantity_of

Kind = Literal["raw", "line", "points", "marks"]
SMOOTHED: Final = 20
"""Steps of a run from which on it is smoothed: fewer show every step well."""
POINTS: Final = 300
"""Buckets of a line, of which each keeps its least and its most."""


@dataclass(frozen=True, slots=True)
class Line:
    """Points of one run in a chart."""

    label: str
    """Of its run, or of its quantity; none if there is one alone."""
    what: str
    """What its points are of it, where it has several lines."""
    run: History
    colour: int
    kind: Kind
    """Each step, if a line of means is beside it; a line; single points; marks at the bottom, which have no value."""
    steps: Column
    values: Column


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart."""

    name: str
    """Of the metric, or of the first of a family."""
    title: str
    unit: str
    group: Group
    log: bool
    from_zero: bool
    lines: tuple[Line, ...]
    by_run: bool
    """Colours are those of runs; if not, of lines."""


def panels_of(runs: Sequence[History]) -> list[Panel]:
    """The charts of `runs`, in the order of a page; what no run has told is in none."""
    names = {name: None for run in runs for table in (run.told, run.held_out) for name in table.names}
    charts: dict[str, list[str]] = {}
    for name in sorted((name for name in names if name not in AXES), key=order_of):
        quantity = quantity_of(name)
        # All ranks together are as fast as one where there is one.
        if name == "tokens_per_second_per_rank" and all(_alike(run.told, name) for run in runs):
            continue
        charts.setdefault(quantity.family if len(runs) == 1 and quantity.family else name, []).append(name)
    buckets = max(60, POINTS * 3 // (2 + len(runs)))
    return [panel for shared, some in charts.items() if (panel := _panel(shared, some, runs, buckets)).lines]


def _panel(shared: str, names: Sequence[str], runs: Sequence[History], buckets: int) -> Panel:
    quantities = [quantity_of(name) for name in names]
    first, several = quantities[0], len(runs) > 1
    is_family = shared == first.family
    lines: list[Line] = []
    for number, run in enumerate(runs):
        for i, (name, quantity) in enumerate(zip(names, quantities, strict=True)):
            label = run.label if several else quantity.label if is_family else ""
            colour = number if several else i
            # One curve alone has its points in another colour.
            own = _Own(label, run, colour, colour if several or is_family else 1)
            lines += [*_draw_steps(name, quantity, own, buckets), *_draw_held_out(name, quantity, own, buckets)]
        if names == ["loss"] and len(run.skipped):
            steps, label = run.skipped.steps, run.label if several else ""
            lines.append(Line(label, "skipped", run, number, "marks", steps, 0 * steps))
    title = first.family if is_family else first.title
    return Panel(names[0], title, first.unit, first.group, first.log, first.from_zero, tuple(lines), not is_family)


class _Own(NamedTuple):
    """What the lines of one metric of one run have in common."""

    label: str
    run: History
    colour: int
    beside: int


def _draw_steps(name: str, quantity: Quantity, own: _Own, buckets: int) -> list[Line]:
    """What is drawn of a metric at each step."""
    steps, values = own.run.told.values(name)
    values = values * quantity.factor
    if not len(values):
        return []
    kept = thin(values, buckets)
    if not quantity.smooth or len(values) < SMOOTHED:
        return [Line(own.label, "", own.run, own.colour, "line", steps[kept], values[kept])]
    raw = Line(own.label, "each step", own.run, own.colour, "raw", steps[kept], values[kept])
    means = smoothed(values, max(1, len(values) // 50))
    kept = thin(means, buckets // 2)
    return [raw, Line(own.label, "smoothed", own.run, own.colour, "line", steps[kept], means[kept])]


def _draw_held_out(name: str, quantity: Quantity, own: _Own, buckets: int) -> list[Line]:
    """What is drawn of the evaluations of a metric."""
    if quantity.group != "loss":
        return []
    steps, values = own.run.held_out.values(name)
    kept = thin(values, buckets // 2)
    return [Line(own.label, "held out", own.run, own.beside, "points", steps[kept], values[kept])] if len(steps) else []


def thin(values: NDArray[np.float64], buckets: int) -> NDArray[np.int64]:
    """Which of `values` are drawn: the first, the last, and the least and the most of each of so many equal buckets, so
    that no spike is lost; all, if they are few.

    >>> thin(np.array([0.0, 0, 9, 0, 0, 0, -9, 0]), 2).tolist()
    [0, 2, 4, 6, 7]
    """
    n = len(values)
    if n <= 2 * buckets:
        return np.arange(n)
    size = -(-n // buckets)
    last = n // size * size
    whole = values[:last].reshape(-1, size)
    starts = np.arange(0, last, size)
    kept = [[0, n - 1], starts + whole.argmin(1), starts + whole.argmax(1)]
    if last < n:
        kept.append([last + values[last:].argmin(), last + values[last:].argmax()])
    return np.unique(np.concatenate([np.asarray(some, dtype=np.int64) for some in kept]))


def smoothed(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """For each of `values`, the mean of those up to `reach` before and as many after it; fewer where it is nearer to an
    end, so that a curve is neither late nor cut.

    >>> smoothed(np.array([1.0, 2, 6, 4]), 1).tolist()
    [1.0, 3.0, 4.0, 4.0]
    """
    n, wide = len(values), min(reach, (len(values) - 1) // 2)
    size = 2 * wide + 1
    # Sums within blocks as long as a window (van Herk, 1992): a spike is in no sum of steps that are far from it.
    blocks = np.concatenate([values, np.zeros(-n % size)]).reshape(-1, size)
    ahead, behind = blocks.cumsum(1).ravel(), blocks[:, ::-1].cumsum(1)[:, ::-1].ravel()
    first = np.arange(n - size + 1)
    last = first + size - 1
    whole = np.where(first % size, behind[first] + ahead[last], ahead[last]) / size
    counts = 2 * np.arange(wide) + 1
    begin, end = values.cumsum()[counts - 1] / counts, values[::-1].cumsum()[counts - 1] / counts
    return np.concatenate([begin, whole, end[::-1]])


def _alike(table: Table, name: str) -> bool:
    steps, values = table.values(name)
    of_all, whole = table.values("tokens_per_second")
    return len(steps) == len(of_all) and bool(np.allclose(values, whole))
