"""Runs as a page: how they went, their curves, what they were asked for. Pure, but for reading its own style.

Every chart is there with steps, tokens and time along it, and with a logarithmic scale where that is of use; which one
is seen is chosen by the style sheet alone. The script adds values under the pointer, and nothing else.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import charts
from charts import AXES, WIDE, Axis, Frame, draw, draw_sample, in_layers, key_of, may_be_log, name_of
from comparison import compare, differing, mesh_of, state_of
from history import History
from panels import Kind, Panel
from quantities import GROUPS, Group
from redact import without_secrets
from scales import short
from sheet import CURVES, make_sheet, make_table, words

_AXIS_WORDS: Final[dict[Axis, str]] = {"step": "steps", "tokens": "tokens", "seconds": "time"}
_HERE: Final = Path(__file__)


def make_page(runs: Sequence[History], panels: Sequence[Panel]) -> str:
    """The page, as HTML."""
    names = [run.label for run in runs]
    title = names[0] if len(runs) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    drawn = [run for run in runs if run.is_drawn()]
    axes: list[Axis] = [axis for axis in AXES if axis == "step" or all(run.has(axis) for run in drawn)]
    body = [
        f'<header><p class="soft">Report of {"a run" if len(runs) == 1 else f"{len(runs)} runs"}</p>'
        f"<h1>{words(title)}</h1></header>",
        f'<div class="heads">{"".join(_head(run, i, len(runs)) for i, run in enumerate(runs))}</div>',
        _controls(runs, axes, log=any(may_be_log(panel) for panel in panels)),
        f"<main>{''.join(_group(group, panels, axes, len(runs)) for group in GROUPS)}</main>",
        _numbers(runs),
        _settings(runs),
    ]
    style = charts.STYLE + _HERE.with_name("report.css").read_text() + _choices(axes)
    return make_sheet(title, "\n".join(body), style=style, script=_HERE.with_name("report.js").read_text())


def _head(run: History, number: int, count: int) -> str:
    """What a run is, and how it went."""
    kind, state = state_of(run)
    measures = {name: found[0].words for name, found, _ in compare([run]) if found[0]}
    best = "Held-out loss, least" if "Held-out loss, least" in measures else "Loss, least"
    facts = {
        "Model": run.settings.get("model") or run.model or "not told",
        "Mesh": mesh_of(run),
        "Data": run.settings.get("data", "not told"),
        "Steps": f"{measures.get('Steps', '0')} of {int(run.settings['steps']):,}"
        if run.settings.get("steps", "").isdecimal()
        else measures.get("Steps", "0"),
        "Tokens": measures.get("Tokens"),
        best: measures.get(best),
        "Time of training": measures.get("Time of training"),
        "Throughput": measures.get("Throughput, median"),
        "Memory": measures.get("Memory, most"),
        "Checkpoints": ", ".join(f"{step:,}" for step in run.checkpoints[-6:]) or "none here",
    }
    told = "".join(f"<div><dt>{name}</dt><dd>{words(_cut(fact))}</dd></div>" for name, fact in facts.items() if fact)
    warned = "".join(f"<li>{words(warning)}</li>" for warning in run.warnings)
    warned = f'<ul class="warned">{warned}</ul>' if warned else ""
    sample = f"{_sample_of(number)} " if count > 1 else ""
    return (
        f'<section class="head" aria-label="{words(run.label)}"><h2>{sample}<span>{words(run.label)}</span>'
        f'<span class="state {kind}">{words(state)}</span></h2>'
        f'<p class="soft path">{words(run.path)}</p><dl>{told}</dl>{warned}</section>'
    )


def _cut(text: str, most: int = 120) -> str:
    """`text`, or its begin; secrets are taken out before they could be cut in two."""
    text = without_secrets(text)
    return text if len(text) <= most else f"{text[:most]} …"


def _sample(kind: Kind, name: str) -> str:
    """A piece of a line, in a key."""
    return f'<svg class="chart sample" viewBox="-2 0 22 14" aria-hidden="true">{draw_sample(kind, name)}</svg>'


def _sample_of(number: int) -> str:
    """The colour of a run."""
    return _sample("line", f"c{number % CURVES}{' dashed' if number // CURVES % 2 else ''}")


def _controls(runs: Sequence[History], axes: Sequence[Axis], *, log: bool) -> str:
    """What is along all charts; and which run has which colour."""
    radios = "".join(
        f'<label><input type="radio" name="axis" id="by-{axis}"{" checked" if axis == "step" else ""}>'
        f"<span>{_AXIS_WORDS[axis]}</span></label>"
        for axis in axes
    )
    box = '<label class="box"><input type="checkbox" id="log"><span>log scale</span></label>' if log else ""
    key = (
        "".join(f"<span>{_sample_of(i)}{words(run.label)}</span>" for i, run in enumerate(runs))
        if len(runs) > 1
        else ""
    )
    shown = f"<fieldset><legend>Along</legend>{radios}</fieldset>" if len(axes) > 1 else radios
    return f'<nav class="controls" aria-label="How charts are drawn">{shown}{box}<div class="key">{key}</div></nav>'


def _choices(axes: Sequence[Axis]) -> str:
    """The style that shows the chart of what is chosen; where it cannot be known, that with steps along it."""
    shown = "svg.by-step.lin { display: block; }\n"
    for axis in axes:
        for scale, state in (("lin", ":not(:has(#log:checked))"), ("log", ":has(#log:checked)")):
            chosen = f"body:has(#by-{axis}:checked){state}"
            shown += f"{chosen} svg.by-{axis}.{scale} {{ display: block; }}\n"
            shown += f"{chosen} figure > svg.chart:not(.by-{axis}.{scale}) {{ display: none; }}\n"
    return f"figure > svg.chart {{ display: none; }}\n{shown}"


def _group(group: Group, panels: Sequence[Panel], axes: Sequence[Axis], runs: int) -> str:
    inside = [panel for panel in panels if panel.group == group]
    if not inside:
        return ""
    figures = "".join(_figure(panel, axes, runs) for panel in inside)
    title = f'<h2 id="of-{group}">{GROUPS[group]}</h2>'
    return f'<section aria-labelledby="of-{group}">{title}<div class="charts">{figures}</div></section>\n'


def _figure(panel: Panel, axes: Sequence[Axis], runs: int) -> str:
    """A chart in all ways in which it can be seen. The loss is drawn twice, for wide and narrow windows."""
    sizes = {"wide": WIDE, "narrow": Frame()} if panel.name == "loss" else {"": Frame()}
    drawn = "".join(
        _variant(panel, axis, log=log, frame=frame, name=size)
        for size, frame in sizes.items()
        for axis in axes
        for log in ((False, True) if may_be_log(panel) else (False,))
    )
    entries = "".join(
        f"<span>{_sample(kind, name)}{words(label)}</span>" for name, kind, label in key_of(panel, runs=False)
    )
    key = f'<p class="key">{entries}</p>' if entries else ""
    unit = f' <span class="soft">{words(panel.unit)}</span>' if panel.unit else ""
    kind = ' class="wide"' if panel.name == "loss" else ""
    return (
        f'<figure{kind} data-name="{words(panel.name)}"><figcaption><h3>{words(panel.title)}{unit}</h3>{key}'
        "</figcaption>\n"
        f'{drawn}<script type="application/json">{_data(panel, runs)}</script></figure>\n'
    )


def _variant(panel: Panel, axis: Axis, *, log: bool, frame: Frame, name: str) -> str:
    """A chart with the classes of when it is seen: of two scales only if it has two."""
    scales = "log" if log else "lin" if may_be_log(panel) else "lin log"
    svg = draw(panel, axis=axis, log=log, frame=frame)
    return svg.replace('class="chart"', f'class="chart by-{axis} {scales} {name}" tabindex="0"', 1) + "\n"


def _data(panel: Panel, runs: int) -> str:
    """What is told under the pointer: of each line that is drawn, its name, colour, steps, and values in words."""
    told = [
        {
            "name": without_secrets(name_of(line) or panel.title),
            "class": f"c{line.colour % CURVES}",
            # Of many runs the means are enough.
            "quiet": runs > 1 and line.kind == "raw",
            "steps": [int(step) for step in line.steps],
            "said": [short(value) for value in line.values.tolist()],
        }
        for line in in_layers(panel)
        if line.kind != "marks"
    ]
    return json.dumps(told, separators=(",", ":")).replace("<", "\\u003c")


def _numbers(runs: Sequence[History]) -> str:
    rows = [
        [
            name,
            *(
                (f'<strong title="the best">{one.words}</strong>' if i in best else one.words) if one else ""
                for i, one in enumerate(found)
            ),
        ]
        for name, found, best in compare(runs)
    ]
    heads = ["", *(words(run.label) for run in runs)]
    return f"<section><h2>Numbers</h2>{make_table(heads, rows, label='Numbers')}</section>"


def _settings(runs: Sequence[History]) -> str:
    """Those that differ; of one run, all."""
    known = [run for run in runs if run.settings]
    if not known:
        return ""
    heads = ["", *(words(run.label) for run in known)]
    if len(known) == 1:
        rows = [[f"<code>{words(name)}</code>", words(value)] for name, value in known[0].settings.items()]
        table = make_table(heads, rows, label="Settings", numbers=False)
        shown = f"<details><summary>All {len(rows)}, as config.yaml has them</summary>{table}</details>"
        return f"<section><h2>Settings</h2>{shown}</section>"
    rows = [
        [f"<code>{words(name)}</code>", *(words(value) if value is not None else "" for value in values)]
        for name, values in differing(known)
    ]
    told = make_table(heads, rows, label="Settings that differ", numbers=False) if rows else "<p>None differ.</p>"
    return f"<section><h2>Settings that differ</h2>{told}</section>"
