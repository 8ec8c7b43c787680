"""Charts as SVG, for pages and for pictures: the one place that draws curves. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from columns import Column
from panels import Kind, Line, Panel
from scales import Scale, scale_of, short, ticks_of, time_unit, words_of
from sheet import CURVES, words

Axis = Literal["step", "tokens", "seconds"]
AXES: Final[tuple[Axis, ...]] = ("step", "tokens", "seconds")
STYLE: Final = """
svg.chart text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  fill: var(--soft); font-variant-numeric: tabular-nums; }
svg.chart .e { text-anchor: end; } svg.chart .m { text-anchor: middle; }
svg.chart .title { font-size: 14px; font-weight: 600; fill: var(--ink); }
svg.chart .grid { stroke: var(--grid); stroke-width: 1; } svg.chart .axis { stroke: var(--axis); stroke-width: 1; }
svg.chart path { fill: none; stroke-linejoin: round; stroke-linecap: round; }
svg.chart .line { stroke-width: 1.8; } svg.chart .raw { stroke-width: 1; opacity: .4; }
svg.chart .join { stroke-width: 1; opacity: .6; } svg.chart .points { stroke-width: 6; }
svg.chart .halo { stroke: var(--card); stroke-width: 9; } svg.chart .marks { stroke: var(--bad); stroke-width: 1.6; }
svg.chart .dashed { stroke-dasharray: 5 3.5; } svg.chart .gray { stroke: var(--soft); }
""" + "".join(f"svg.chart .c{i} {{ stroke: var(--c{i}); }}\n" for i in range(CURVES))


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a chart is drawn, in pixels."""

    width: float = 380
    height: float = 220
    left: float = 44
    right: float = 12
    top: float = 10
    bottom: float = 38


WIDE: Final = Frame(width=1040, height=330, left=52)


def draw(panel: Panel, *, axis: Axis, log: bool = False, frame: Frame = Frame(), titled: bool = False) -> str:
    """A chart, as SVG.

    Args:
        panel: what is in it.
        axis: what is along it.
        log: values have a logarithmic scale, which they must allow: see `may_be_log`.
        frame: where.
        titled: title and key are in it.
    """
    head, high = _draw_head(panel, frame) if titled else ("", 0.0)
    frame = Frame(frame.width, frame.height + high, frame.left, frame.right, frame.top + high, frame.bottom)
    lines = in_layers(panel)
    along = [line.run.where(line.steps, axis) for line in lines]
    unit, name = time_unit(max(float(some.max()) for some in along)) if axis == "seconds" else (1.0, axis)
    along = [some / unit for some in along]
    x = _span(along)
    y = scale_of([line.values for line in _valued(panel)], log=log, from_zero=panel.from_zero)
    title = f"{name} of training" if axis == "seconds" else name
    drawn = "".join(
        _draw_line(line, frame.left + x.place(some) * (frame.width - frame.left - frame.right), y, frame)
        for line, some in zip(lines, along, strict=True)
    )
    ends = f'data-low="{x.low * unit:.9g}" data-high="{x.high * unit:.9g}"'
    margins = f'data-left="{frame.left:g}" data-right="{frame.right:g}"'
    box = f'viewBox="0 0 {frame.width:g} {frame.height:g}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {box} role="img" aria-label="{words(tell(panel))}" '
        f"{ends} {margins}>{head}{_draw_axes(x, y, frame, title)}{drawn}</svg>"
    )


_LAYERS: Final[tuple[Kind, ...]] = ("marks", "raw", "line", "points")
"""From the lowest to the highest."""


def in_layers(panel: Panel) -> list[Line]:
    """The lines of `panel` in the order in which they are drawn."""
    return sorted(panel.lines, key=lambda line: _LAYERS.index(line.kind))


def may_be_log(panel: Panel) -> bool:
    """Whether a logarithmic scale is of use, and possible."""
    return panel.log and all(float(line.values.min()) > 0 for line in _valued(panel))


def tell(panel: Panel) -> str:
    """What a chart shows, in words, for who does not see it."""
    told = [
        f"{name_of(line) or panel.title}: {short(values[0])} at step {steps[0]:,.0f}, {short(values[-1])} at step "
        f"{steps[-1]:,.0f}, from {short(values.min())} to {short(values.max())}"
        for line in _valued(panel)
        for steps, values in ((line.steps, line.values),)
        if line.kind != "raw"
    ]
    unit = f", {panel.unit}" if panel.unit else ""
    return f"{panel.title}{unit}. {'; '.join(told)}."


def name_of(line: Line) -> str:
    """What a line is called beside others."""
    return ", ".join(filter(None, (line.label, line.what)))


def key_of(panel: Panel, *, runs: bool) -> list[tuple[str, Kind, str]]:
    """What lines of a chart mean: their class, how they are drawn, and a name; nothing where it is plain.

    Args:
        panel: the chart.
        runs: which run has which colour is among it.
    """
    labels = {line.label: line for line in _valued(panel)}
    kinds = {line.what: line for kind in _KEYS for line in panel.lines if line.what and line.kind == kind}
    if [*labels] == [""]:
        return [(_class(line), line.kind, line.what) for line in kinds.values()] if len(panel.lines) > 1 else []
    shown: list[tuple[str, Kind, str]] = []
    if runs or not panel.by_run:
        shown.extend((_class(line), "line", label) for label, line in labels.items())
    shown.extend(("" if line.kind == "marks" else "gray", line.kind, what) for what, line in kinds.items())
    return shown


_KEYS: Final[tuple[Kind, ...]] = ("raw", "line", "points", "marks")
"""The order of a key."""


def draw_sample(kind: Kind, name: str, x: float = 0, y: float = 7) -> str:
    """A piece of a line of that class, 18 pixels long, as it is in a key."""
    path = {"marks": f"M{x + 9:g} {y - 4:g}v8", "points": f"M{x + 9:g} {y:g}h.01"}.get(kind, f"M{x:g} {y:g}h18")
    return f'<path class="{kind} {name}" d="{path}"/>'


def _class(line: Line) -> str:
    if line.kind == "marks":
        return ""
    dashed = " dashed" if line.colour // CURVES % 2 and line.kind == "line" else ""
    return f"c{line.colour % CURVES}{dashed}"


def _valued(panel: Panel) -> list[Line]:
    return [line for line in panel.lines if line.kind != "marks"]


def _span(along: Sequence[Column]) -> Scale:
    low, high = min(float(some.min()) for some in along), max(float(some.max()) for some in along)
    low = 0.0 if low < 0.1 * high else low
    return Scale(low, high if high > low else low + 1)


def _draw_line(line: Line, x: Column, y: Scale, frame: Frame) -> str:
    name, bottom = _class(line), frame.height - frame.bottom
    if line.kind == "marks":
        return f'<path class="marks" d="{"".join(f"M{at:.1f} {bottom:.1f}v-9" for at in x)}"/>'
    high = bottom - y.place(line.values) * (bottom - frame.top)
    pairs = [f"{a:.1f} {b:.1f}" for a, b in zip(x.tolist(), high.tolist(), strict=True)]
    if line.kind == "points":
        dots = "".join(f"M{pair}h.01" for pair in pairs)
        return (
            f'<path class="join {name}" d="M{" ".join(pairs)}"/><path class="halo" d="{dots}"/>'
            f'<path class="points told {name}" d="{dots}"/>'
        )
    if len(pairs) == 1:
        return f'<path class="points told {name}" d="M{pairs[0]}h.01"/>'
    return f'<path class="{line.kind} told {name}" d="M{" ".join(pairs)}"/>'


def _draw_axes(x: Scale, y: Scale, frame: Frame, title: str) -> str:
    left, right, bottom = frame.left, frame.width - frame.right, frame.height - frame.bottom
    drawn = ""
    rows = ticks_of(y, max(3, round((bottom - frame.top) / 45)))
    for at, label in zip(bottom - y.place(np.array(rows)) * (bottom - frame.top), words_of(rows), strict=True):
        drawn += f'<path class="grid" d="M{left:g} {at:.1f}H{right:g}"/>'
        drawn += f'<text class="e" x="{left - 7:g}" y="{at + 3.8:.1f}">{label}</text>'
    columns = ticks_of(x, max(3, round((right - left) / 95)))
    for at, label in zip(left + x.place(np.array(columns)) * (right - left), words_of(columns), strict=True):
        drawn += f'<path class="axis" d="M{at:.1f} {bottom:g}v4"/>'
        # The last label ends where the chart does.
        end = "e" if at > right - 12 else "m"
        drawn += (
            f'<text class="{end}" x="{min(at, right) if end == "m" else right:.1f}" y="{bottom + 16:g}">{label}</text>'
        )
    drawn += f'<path class="axis" d="M{left:g} {bottom:g}H{right:g}"/>'
    return f'{drawn}<text class="e" x="{right:g}" y="{bottom + 31:g}">{title}</text>'


def _draw_head(panel: Panel, frame: Frame) -> tuple[str, float]:
    """Title and key, and how high they are."""
    unit = f'  <tspan class="unit" font-weight="400">{words(panel.unit)}</tspan>' if panel.unit else ""
    drawn, x, y = f'<text class="title" x="12" y="24">{words(panel.title)}{unit}</text>', 12.0, 44.0
    entries = key_of(panel, runs=True)
    for name, kind, label in entries:
        # Letters of this size are six and a half pixels wide, on average.
        wide = 24 + 6.5 * len(label) + 14
        if x + wide > frame.width and x > 12:
            x, y = 12.0, y + 17
        drawn += draw_sample(kind, name, x, y - 4) + f'<text x="{x + 24:g}" y="{y:g}">{words(label)}</text>'
        x += wide
    return drawn, y + (12 if entries else -10)
