"""All that a plan tells: how the run would go as asked for, and on the meshes that fit; as a value, and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from meshes import Found, find_meshes
from outlook import Outlook, Theatre, choice_asked, look_ahead, traffic_of
from remedy import tell_misfit
from subject import Subject
from traffic import Collective, Group, group_of, seconds_of

from omni_models import flops_per_token

Sent = tuple[Collective, int, Group, float]
"""A collective, how often a step has it, of which ranks, and its seconds alone."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """How a run would go."""

    subject: Subject
    asked: Outlook | None
    """None if the mesh that was asked for cannot be."""
    traffic: tuple[Sent, ...]
    """Of what was asked for."""
    found: Found
    best_traffic: tuple[Sent, ...]


def forecast(subject: Subject) -> Forecast:
    """How the run would go.

    Raises:
        ValueError: if no mesh fits, with what would make one fit.
    """
    theatre = Theatre(subject)
    asked = None if subject.wrong else look_ahead(theatre, subject.spec, choice_asked(subject))
    found = find_meshes(theatre, subject.asked.best)
    if not found.best and not (asked and asked.fits):
        raise ValueError(tell_misfit(theatre, found))
    best = found.best[0] if found.best else None
    return Forecast(subject, asked, _sent(theatre, asked), found, _sent(theatre, best))


def _sent(theatre: Theatre, outlook: Outlook | None) -> tuple[Sent, ...]:
    """What a step sends, most bytes first."""
    if outlook is None:
        return ()
    spec, cluster = outlook.spec, theatre.subject.cluster
    traffic = {one: count for one, count in traffic_of(theatre, outlook).items() if _ranks(one, outlook) > 1}
    return tuple(
        (one, count, group_of(spec, one.axis, cluster.node), seconds_of(one, spec, cluster)[0])
        for one, count in sorted(traffic.items(), key=lambda item: -item[0].bytes * item[1])
    )


def _ranks(one: Collective, outlook: Outlook) -> int:
    return group_of(outlook.spec, one.axis, 1).ranks


def as_json(told: Forecast) -> dict[str, Any]:
    """The same, of numbers and words. Pure."""
    subject = told.subject
    facts = subject.facts
    return {
        "model": subject.asked.run.model,
        "parameters": facts.num_params,
        "active_parameters": facts.active_params,
        "gpus": subject.asked.gpus,
        "gpu": subject.asked.gpu,
        "measured": subject.cluster.gpu.measured,
        "rows": subject.rows,
        "seq_len": subject.asked.run.seq_len,
        "kernels": {part: list(words) for part, words in subject.kernels.items()},
        "asked": _outlook_json(told, told.asked, told.traffic) if told.asked else None,
        "wrong": list(subject.wrong),
        "left_out": subject.left_out,
        "best": [
            _outlook_json(told, one, told.best_traffic if i == 0 else ()) for i, one in enumerate(told.found.best)
        ],
        "tried": told.found.tried,
        "refused": dict(told.found.refused),
    }


def _outlook_json(told: Forecast, one: Outlook, traffic: Sequence[Sent]) -> dict[str, Any]:
    reach = told.subject.asked.reach or one.seq_len
    flops = flops_per_token(told.subject.facts, reach)
    moments = [asdict(moment) | {"total": moment.total} for moment in one.footprint.moments]
    return {
        "mesh": {**one.spec.base, "ep": one.spec.ep},
        "flags": one.choice.flags(one.spec),
        "fits": one.fits,
        "tokens_per_pass": one.how.tokens,
        "passes": one.how.passes,
        "memory": asdict(one.footprint.peak) | {"total": one.footprint.peak.total},
        "moments": moments,
        "usable_bytes": one.room,
        "host_bytes": one.footprint.host,
        "seconds": one.pace.seconds,
        "seconds_of": one.pace.parts,
        "bound": one.pace.bound,
        "tokens_per_second_per_gpu": one.speed,
        "tflops_per_gpu": one.speed * flops / 1e12,
        "collectives": [
            {**collective._asdict(), "count": count, "ranks": group.ranks, "nodes": group.nodes, "seconds": seconds}
            for collective, count, group, seconds in traffic
        ],
    }
