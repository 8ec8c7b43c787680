"""A plan as a page of its own: no script, no style or picture from elsewhere. Pure, but for reading its style."""

from collections.abc import Sequence

from disk import size_of
from footprint import Moment
from forecast import Forecast, Sent
from outlook import Outlook
from pace import PARTS
from picture import KINDS, draw_mesh
from sheet import CURVES, make_sheet, make_table, words


def make_page(told: Forecast) -> str:
    """The page, as HTML."""
    subject = told.subject
    run, facts = subject.asked.run, subject.facts
    title = f"{run.model} on {subject.asked.gpus:,} {subject.asked.gpu}"
    parts = [
        f"<h1>{words(title)}</h1>",
        f"<p>{words(facts.model_type)}, {facts.num_params:,} parameters, {facts.active_params:,} active; "
        f"{subject.rows:,} rows of {run.seq_len:,} tokens a step.</p>",
    ]
    if not subject.cluster.gpu.measured:
        parts.append("<p class=no>This GPU was not measured: its speeds are scaled by data sheets.</p>")
    if subject.left_out:
        parts.append(f"<p class=no>Left out are {words(subject.left_out)}.</p>")
    if told.asked:
        parts.append(_section("As asked for", told.asked, told.traffic))
    else:
        parts.append(f"<h2>As asked for it cannot be</h2><pre>{words(chr(10).join(subject.wrong))}</pre>")
    parts.append(f"<h2>The fastest that fit, of {told.found.tried:,} tried</h2>{_table(told.found.best)}")
    if told.found.best:
        parts.append(_section("The first of them", told.found.best[0], told.best_traffic))
    kernels = [f"{part:<10}{line}" for part, lines in subject.kernels.items() for line in lines]
    parts.append(f"<h2>What would compute it, and why not others</h2><pre>{words(chr(10).join(kernels))}</pre>")
    return make_sheet(title, "".join(parts))


def _section(title: str, one: Outlook, traffic: Sequence[Sent]) -> str:
    fits = "It fits" if one.fits else "<span class=no>It does not fit</span>"
    peak = one.footprint.peak
    rows = [
        (
            f"{sent.op}, {sent.axis}",
            f"{count:,}",
            f"{group.ranks:,}",
            f"{group.nodes:,}",
            size_of(sent.bytes),
            f"{s:.2g}",
        )
        for sent, count, group, s in traffic
    ]
    heads = ("collective and axis", "a step", "ranks", "nodes", "bytes", "seconds alone")
    host = f" {size_of(one.footprint.host)} of the host are pinned." if one.footprint.host else ""
    return (
        f"<h2>{title}</h2><p><code>{words(one.choice.flags(one.spec))}</code></p>"
        f"<p>{fits}: {size_of(peak.total)} of {size_of(int(one.room))} at its fullest, {words(peak.when)}.{host}</p>"
        f"{_memory(one)}<p>{one.pace.seconds:.3g} s a step, {one.speed:,.0f} tokens a second and GPU; bound by "
        f"{one.pace.bound}.</p>{_pace(one)}<pre>{words(chr(10).join(draw_mesh(one.spec, 8)))}</pre>"
        f"{_rows(heads, rows)}"
    )


def _memory(one: Outlook) -> str:
    moments = one.footprint.moments
    most = max(one.room, one.footprint.peak.total)
    bars = "".join(_bar(moment, i, most) for i, moment in enumerate(moments))
    x = 700 * one.room / most
    line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{26 * len(moments)}" class="limit"/>'
    return f"{_key([name for name, _ in KINDS])}{_svg(1080, 26 * len(moments), bars + line)}"


def _bar(moment: Moment, i: int, most: float) -> str:
    sizes = [getattr(moment, name) for name, _ in KINDS]
    label = f"{size_of(moment.total)}, {words(moment.when)}"
    return f'{_strip(sizes, 26 * i, most)}<text x="710" y="{26 * i + 16}">{label}</text>'


def _pace(one: Outlook) -> str:
    strip = _strip([one.pace.parts[part] for part in PARTS], 0, one.pace.seconds)
    names = [f"{part} {one.pace.parts[part] / one.pace.seconds:.0%}" for part in PARTS]
    return f"{_key(names)}{_svg(710, 26, strip)}"


def _strip(sizes: Sequence[float], y: int, most: float) -> str:
    x, drawn = 0.0, ""
    for i, size in enumerate(sizes):
        wide = 700 * size / most
        drawn += f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="22" style="fill:var(--c{i % CURVES})"/>'
        x += wide
    return drawn


def _svg(wide: int, high: int, drawn: str) -> str:
    return f'<svg class="strip" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}">{drawn}</svg>'


def _key(names: Sequence[str]) -> str:
    spans = (f'<span><i style="background:var(--c{i % CURVES})"></i>{words(n)}</span>' for i, n in enumerate(names))
    return f'<p class="key">{"".join(spans)}</p>'


def _table(best: Sequence[Outlook]) -> str:
    rows = [
        (
            one.choice.flags(one.spec),
            f"{one.speed:,.0f}",
            f"{one.pace.seconds:.3g}",
            size_of(one.footprint.peak.total),
            one.pace.bound,
        )
        for one in best
    ]
    return _rows(("flags", "tokens/s/GPU", "s a step", "memory", "bound by"), rows)


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return make_table([words(one) for one in heads], [[words(cell) for cell in row] for row in rows])
