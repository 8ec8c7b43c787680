"""What would make a run fit that does not, in words."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from disk import size_of
from meshes import Found
from outlook import Outlook, Theatre, look_ahead
from subject import MOST_GPUS, Subject

_GROWS: Final = (2, 4, 8, 16, 32, 64, 128, 256)


def tell_misfit(theatre: Theatre, found: Found) -> str:
    """Why no mesh fits, and what would.

    Args:
        theatre: of the run.
        found: a search that found none.
    """
    subject, least = theatre.subject, found.least
    gpus = f"{subject.asked.gpus} GPU{'s' if subject.asked.gpus > 1 else ''} of kind {subject.asked.gpu}"
    if least is None:
        why = [f"{why} ({count} meshes)" for why, count in found.refused]
        rows = f"--batch {subject.rows} must be shared evenly by the ranks that read rows: choose a multiple of them, "
        told = why or [f"{rows}{subject.asked.gpus} for example."]
        return "\n".join([f"no mesh of {gpus} can train {subject.asked.run.model}:", *(f"  - {one}" for one in told)])
    peak = least.footprint.peak
    lines = [
        f"{subject.asked.run.model} does not fit {gpus}: what takes least, {least.choice.flags(least.spec)}, needs "
        f"{size_of(peak.total)} a rank at its fullest moment ({peak.when}), and {size_of(int(least.room))} are there.",
        *(f"  - {remedy}" for remedy in _find_remedies(theatre, least)),
    ]
    return "\n".join(lines)


def _find_remedies(theatre: Theatre, least: Outlook) -> list[str]:
    subject = theatre.subject
    run, found = subject.asked.run, []
    tries: list[tuple[str, Any]] = [
        ("--optim.state-dtype bfloat16", {"optim": replace(run.optim, state_dtype="bfloat16")}),
        ("--optim.offload", {"optim": replace(run.optim, offload=True)}),
    ]
    both = replace(run.optim, state_dtype="bfloat16", offload=True)
    tries.append(("--optim.offload --optim.state-dtype bfloat16", {"optim": both}))
    if subject.facts.mlps and not run.tile_mlp:
        tries.append(("--tile-mlp 8192", {"tile_mlp": 8192}))
    tries += [(f"--seq-len {run.seq_len // n}", {"seq_len": run.seq_len // n}) for n in _GROWS if run.seq_len // n > 1]
    for flags, changes in tries:
        other = replace(subject.asked, run=replace(run, **changes))
        if _fits(replace(subject, asked=other), least):
            found.append(f"it fits with {flags}.")
            if "--seq-len" in flags:
                break
    found += _more_gpus(subject, least)
    return found or [f"more than {MOST_GPUS:,} GPUs would be needed: choose a smaller model or shorter rows."]


def _more_gpus(subject: Subject, least: Outlook) -> Iterator[str]:
    for n in _GROWS:
        gpus = subject.asked.gpus * n
        if gpus > MOST_GPUS:
            return
        run = replace(subject.asked.run, batch=subject.rows * n)
        other = replace(subject, asked=replace(subject.asked, run=run, gpus=gpus))
        spec = replace(least.spec, shard=least.spec.shard * n)
        if _fits(other, replace(least, spec=spec)):
            yield f"it fits {gpus:,} GPUs, as --shard {spec.shard}, with --batch {run.batch}."
            return


def _fits(subject: Subject, least: Outlook) -> bool:
    return look_ahead(Theatre(subject), least.spec, least.choice, exact=False).fits
