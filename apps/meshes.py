"""Which meshes fit, and which is fastest: of all that the world can be cut into, with what trades speed for memory.

For each mesh and microbatch what is tried goes from the fastest to the smallest, and the first two that fit are kept.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from outlook import Choice, Outlook, Theatre, look_ahead, plan_of
from subject import Subject

from omni_mesh import MeshSpec
from omni_parallel import RecomputeConfig

_LEAST_SLICE = 4096
"""Tokens of a slice of a row below which none is cut finer, unless there are too few rows."""
_MOST_SP = 64
_EPS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found."""

    best: tuple[Outlook, ...]
    """Those that fit, the fastest first."""
    least: Outlook | None
    """What takes least memory of all."""
    tried: int
    refused: tuple[tuple[str, int], ...]
    """Why meshes are none, and how many."""


def find_meshes(theatre: Theatre, most: int) -> Found:
    """The best of the meshes of as many ranks as the run has, `most` of them."""
    fits: list[Outlook] = []
    least: Outlook | None = None
    tried, refused = 0, Counter[str]()
    for spec in list_specs(theatre.subject):
        try:
            plan_of(theatre.subject, spec, Choice(1))
        except ValueError as problem:
            refused[str(problem).splitlines()[-1].strip(" -")] += 1
            continue
        for micro in list_micros(theatre.subject, spec):
            kept = 0
            for choice in list_choices(theatre.subject, spec, micro):
                outlook = look_ahead(theatre, spec, choice, exact=False)
                tried += 1
                if least is None or outlook.footprint.peak.total < least.footprint.peak.total:
                    least = outlook
                if outlook.fits:
                    fits.append(outlook)
                    kept += 1
                if kept == 2:
                    break
    return Found(tuple(_confirm(theatre, fits, most)), least, tried, tuple(refused.most_common(5)))


def _confirm(theatre: Theatre, fits: list[Outlook], most: int) -> list[Outlook]:
    """The fastest, rehearsed with just as many tokens, each mesh once."""
    ordered = sorted(fits, key=lambda outlook: -outlook.speed)
    firsts = {outlook.spec: outlook for outlook in reversed(ordered)}
    some = islice((one for one in ordered if firsts[one.spec] is one), 2 * most)
    exact = (look_ahead(theatre, one.spec, one.choice) for one in some)
    return sorted((one for one in exact if one.fits), key=lambda outlook: -outlook.speed)[:most]


def list_specs(subject: Subject) -> Iterator[MeshSpec]:
    """The meshes of the world that share out the rows of a step. Pure."""
    world, rows, length = subject.asked.gpus, subject.rows, subject.asked.run.seq_len
    sps = [n for n in divisors(world) if n <= min(_MOST_SP, length, subject.facts.num_heads)]
    wanted = [n for n in sps if n == 1 or length // n >= _LEAST_SLICE] if world <= rows else sps
    for sp in wanted:
        for shard in divisors(world // sp):
            replicate = world // sp // shard
            if rows % (replicate * shard):
                continue
            eps = _EPS if subject.facts.experts else (1,)
            for ep in (n for n in eps if (shard * sp) % n == 0 and (n == 1 or subject.facts.num_experts % n == 0)):
                # Slices of rows and experts together only where experts fill a node, or nothing.
                if sp == 1 or ep in (1, 8):
                    yield MeshSpec(replicate=replicate, shard=shard, sp=sp, ep=ep)


def list_micros(subject: Subject, spec: MeshSpec) -> list[int]:
    """Rows of a microbatch: as asked, or one, two, four and eight, if they divide those of a rank. Pure."""
    own = subject.rows // spec.dp
    if subject.asked.run.micro:
        return [subject.asked.run.micro] if own % subject.asked.run.micro == 0 else []
    return [n for n in (1, 2, 4, 8) if own % n == 0]


def list_choices(subject: Subject, spec: MeshSpec, micro: int) -> Iterator[Choice]:
    """From what is fastest to what is smallest. What was asked for stays. Pure."""
    run = subject.asked.run
    asked = run.recompute.every > 0
    ways = (run.recompute,) if asked else (RecomputeConfig(), RecomputeConfig(1, "attention"), RecomputeConfig(1))
    if run.compile:
        ways = tuple(way for way in ways if way.keep == "nothing")
    for offload in (run.offload,) if run.offload or run.compile else (False, True):
        for way in ways:
            for kept in (True, False) if run.keep_gathered is None and spec.fsdp > 1 else (bool(run.keep_gathered),):
                if not offload or way.every or run.offload:
                    yield Choice(micro, way, kept, offload)


def divisors(n: int) -> list[int]:
    """Of a number, in order. Pure.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [k for k in range(1, n + 1) if n % k == 0]
