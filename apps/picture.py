"""A plan for the terminal: numbers, a picture of the mesh, and bars of memory. Pure."""

from collections.abc import Iterator, Sequence
from typing import Final

from decision import tell_moments
from disk import size_of
from footprint import Moment
from forecast import Forecast
from outlook import Outlook
from pace import PARTS
from traffic import Collective, Group

from omni_mesh import MeshSpec, coords

KINDS: Final = (
    ("weights", "W"),
    ("moments", "M"),
    ("gathered", "G"),
    ("gradients", "D"),
    ("activations", "A"),
    ("temporary", "T"),
)
"""What memory is of, and its letter."""
_AXES: Final = (("replicate", "r"), ("shard", "s"), ("sp", "q"), ("ep", "e"))
WIDE: Final = 60
"""Letters of a bar that is as long as the memory of a GPU."""


def tell_forecast(told: Forecast) -> str:
    """All of it."""
    subject = told.subject
    run, gpu, facts = subject.asked.run, subject.cluster.gpu, subject.facts
    known = "" if gpu.measured else ", which was not measured: speeds are scaled by data sheets"
    lines = [
        f"model     {facts.model_type}, {facts.num_params:,} parameters, {facts.active_params:,} active, "
        f"{len(facts.blocks)} blocks",
        f"GPUs      {subject.asked.gpus:,} of kind {subject.asked.gpu}, {subject.asked.node_gpus} a node{known}",
        f"step      {subject.rows:,} rows of {run.seq_len:,} tokens; {subject.cluster.net / 1e9:g} GB/s between nodes, "
        f"{gpu.link:g} within",
    ]
    if moments := tell_moments(run.optim):
        lines.append(f"state     {moments}")
    lines += [f"{'computes' if i == 0 else '':<10}{line}" for i, line in enumerate(_parts(told))]
    if subject.left_out:
        lines.append(f"left out  {subject.left_out}")
    if run.explain:
        lines += ["", *(f"{part:<10}{line}" for part, words in subject.kernels.items() for line in words)]
    if told.asked and told.asked.fits:
        lines += ["", "as asked for", *_tell_outlook(told.asked, told.traffic)]
    elif told.asked:
        lines += ["", "as asked for it does not fit", *_tell_memory(told.asked)]
    else:
        lines += ["", "as asked for it cannot be:", *(f"  {line}" for why in subject.wrong for line in why.split("\n"))]
    lines += ["", f"the fastest that fit, of {told.found.tried:,} tried", *_table(told.found.best)]
    best = next(iter(told.found.best), None)
    if best and (not told.asked or best.spec != told.asked.spec or best.choice != told.asked.choice):
        lines += ["", "the first of them", *_tell_outlook(best, told.best_traffic)]
    for why, count in told.found.refused:
        lines.append(f"{count} meshes cannot be: {why}")
    return "\n".join(lines)


def _parts(told: Forecast) -> list[str]:
    """What computes the parts that have a choice."""
    words = {part: lines[0] for part, lines in told.subject.kernels.items() if part in ("attention", "experts", "loss")}
    if words["attention"] != "fa4" and told.subject.cluster.gpu.capability >= (9, 0):
        words["attention"] += ", of what is installed here; speeds are those of fa4, an extra"
    return [f"{part}: {what}" for part, what in words.items()]


def _tell_memory(one: Outlook) -> Iterator[str]:
    peak = one.footprint.peak
    yield f"flags     {one.choice.flags(one.spec)}"
    yield f"passes    {one.how.passes} of {one.choice.micro} rows on each rank, {one.how.tokens:,} tokens"
    verdict = "fits" if one.fits else "DOES NOT FIT"
    yield f"memory    {verdict}: {size_of(peak.total)} of {size_of(int(one.room))} at its fullest, {peak.when}"
    yield from (f"          {line}" for line in bars(one))
    if one.footprint.host:
        yield f"host      {size_of(one.footprint.host)} of pinned memory a rank"


def _tell_outlook(one: Outlook, traffic: Sequence[tuple[Collective, int, Group, float]]) -> Iterator[str]:
    pace = one.pace
    yield from _tell_memory(one)
    yield (
        f"pace      {pace.seconds:.3g} s a step, {one.speed:,.0f} tokens a second and GPU, "
        f"{one.speed * one.spec.world:,.0f} in all; bound by {pace.bound}"
    )
    shares = [f"{part} {pace.parts[part] / pace.seconds:.0%}" for part in PARTS if pace.parts[part] > 0]
    yield f"          {', '.join(shares)}"
    yield "mesh"
    yield from (f"          {line}" for line in draw_mesh(one.spec, 8))
    yield "sends     a step on each rank: how often, what, among how many, bytes each, seconds each alone"
    for collective, count, group, seconds in traffic:
        yield (
            f"          {count:>6,} {collective.op:<14} {collective.axis:<9} {group.ranks:>6,} in {group.nodes:>5,} "
            f"nodes  {size_of(collective.bytes):>10}  {seconds:.2g}"
        )


def bars(one: Outlook) -> list[str]:
    """The moments of a step, a bar each; a letter is a sixtieth of what tensors can have."""
    lines = [" ".join(f"{letter} {name}" for name, letter in KINDS)]
    for moment in one.footprint.moments:
        mark = "<- most" if moment is one.footprint.peak else ""
        lines.append(f"{bar(moment, one.room)} {size_of(moment.total):>8}  {moment.when} {mark}".rstrip())
    return lines


def bar(moment: Moment, room: float) -> str:
    """What a moment holds, in letters; what is beyond the room comes after it."""
    sofar, drawn = 0, ""
    for name, letter in KINDS:
        sofar += getattr(moment, name)
        drawn += letter * (round(WIDE * sofar / room) - len(drawn))
    return f"[{drawn[:WIDE]:.<{WIDE}}]{'+' if len(drawn) > WIDE else ' '}"


def draw_mesh(spec: MeshSpec, node: int) -> list[str]:
    """Where ranks are: a row a node, the first and the last of many."""
    sizes = {"replicate": spec.replicate, "shard": spec.shard, "sp": spec.sp, "ep": spec.ep}
    axes = [(axis, letter) for axis, letter in _AXES if sizes[axis] > 1]
    if not axes:
        return ["one rank"]
    nodes = -(-spec.world // node)
    rows = [*range(min(nodes, 3)), *([nodes - 1] if nodes > 3 else [])]
    lines = [", ".join(f"{letter} {axis} {sizes[axis]}" for axis, letter in axes)]
    for row in rows:
        if row == nodes - 1 and nodes > 4:
            lines.append("...")
        ranks = range(row * node, min(spec.world, (row + 1) * node))
        cells = ["".join(f"{letter}{coords(spec, rank)[axis]}" for axis, letter in axes) for rank in ranks]
        lines.append(f"node {row:<5} | {' | '.join(cells)} |")
    return lines


def _table(best: Sequence[Outlook]) -> Iterator[str]:
    if not best:
        yield "  none"
        return
    yield f"  {'tokens/s/GPU':>12} {'s a step':>9} {'memory':>9}  bound by   flags"
    for one in best:
        memory = size_of(one.footprint.peak.total)
        yield (
            f"  {one.speed:>12,.0f} {one.pace.seconds:>9.3g} {memory:>9}  {one.pace.bound:<10} "
            f"{one.choice.flags(one.spec)}"
        )
