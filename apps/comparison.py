"""How runs went, in a few numbers each, side by side. Pure."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from history import History
from scales import clock, short


class Outcome(NamedTuple):
    """A number of a run, in words, and what it is compared by."""

    words: str
    value: float | None = None


class Measure(NamedTuple):
    """How such a number is called, how it is read of a run, and which is better."""

    name: str
    read: Callable[[History], Outcome | None]
    better: int = 0
    """1: more, -1: less, 0: neither."""


def state_of(run: History) -> tuple[str, str]:
    """Whether a run is through, as "good", "warn" or "", and in words. Without config.yaml nobody knows."""
    if not len(run.told):
        return "warn", "no step is told"
    step, (asked, stop) = int(run.told.steps[-1]), (_whole(run.settings.get(name)) for name in ("steps", "stop_after"))
    # A run ends with a step that is skipped, too.
    step = max([step, *run.skipped.steps.astype(int)])
    if asked is None:
        return "", f"stands at step {step:,}"
    if step >= asked:
        return "good", "finished"
    if stop and step >= stop:
        return "", f"stopped after step {step:,}, as asked"
    return "warn", f"stands at step {step:,} of {asked:,}"


def mesh_of(run: History) -> str:
    """The mesh of the newest checkpoint; if there is none, what was asked for."""
    if run.mesh:
        experts = {"ep": _whole(run.settings.get("ep")) or 1}
        told = [f"{axis} {size}" for axis, size in {**run.mesh, **experts}.items() if size > 1]
        return ", ".join(told) or "one rank"
    asked = [(axis, run.settings.get(axis, "1")) for axis in ("pp", "replicate", "shard", "cp", "sp", "tp", "ep")]
    told = [f"{axis} {size}" for axis, size in asked if size not in ("1", "-1")]
    return ", ".join([*told, *(["shard as many as there are"] if ("shard", "-1") in asked else [])]) or "one rank"


def _last(run: History, name: str, *, held_out: bool = False) -> Outcome | None:
    _, values = (run.held_out if held_out else run.told).values(name)
    return Outcome(short(values[-1], 5), float(values[-1])) if len(values) else None


def _least(run: History, *, held_out: bool) -> Outcome | None:
    steps, values = (run.held_out if held_out else run.told).values("loss")
    if not len(values):
        return None
    at = int(values.argmin())
    return Outcome(f"{short(values[at], 5)} at step {steps[at]:,.0f}", float(values[at]))


def _near_the_end(run: History) -> Outcome | None:
    """The mean loss of the last steps, a twentieth of all, which tells runs apart better than the last one."""
    _, values = run.told.values("loss")
    if len(values) < 20:
        return None
    mean = float(values[-(len(values) // 20) :].mean())
    return Outcome(short(mean, 5), mean)


def _median(name: str, unit: str, factor: float = 1.0) -> Callable[[History], Outcome | None]:
    def read(run: History) -> Outcome | None:
        _, values = run.told.values(name)
        median = float(np.median(values)) * factor if len(values) else 0.0
        return Outcome(f"{short(median)} {unit}".strip(), median) if len(values) else None

    return read


def _most(name: str, unit: str) -> Callable[[History], Outcome | None]:
    def read(run: History) -> Outcome | None:
        _, values = run.told.values(name)
        return Outcome(f"{short(values.max(), 3)} {unit}", float(values.max())) if len(values) else None

    return read


def _time(run: History) -> Outcome | None:
    _, seconds = run.told.values("seconds")
    return Outcome(clock(seconds.sum()), float(seconds.sum())) if len(seconds) else None


def _waited(run: History) -> Outcome | None:
    (_, waits), (_, seconds) = run.told.values("data_seconds"), run.told.values("seconds")
    if not len(waits) or not seconds.sum():
        return None
    share = float(waits.sum() / seconds.sum())
    return Outcome(f"{100 * share:.1f} % of the time", share)


def _count(run: History) -> Outcome | None:
    return Outcome(f"{len(run.skipped):,}", len(run.skipped))


def _steps(run: History) -> Outcome | None:
    return Outcome(f"{run.told.steps[-1]:,.0f}") if len(run.told) else None


def _tokens(run: History) -> Outcome | None:
    _, values = run.told.values("tokens")
    return Outcome(short(values[-1])) if len(values) else None


MEASURES: Final = (
    Measure("Steps", _steps),
    Measure("Tokens", _tokens),
    Measure("Loss, last", lambda run: _last(run, "loss"), -1),
    Measure("Loss, mean of the last twentieth", _near_the_end, -1),
    Measure("Loss, least", lambda run: _least(run, held_out=False), -1),
    Measure("Held-out loss, last", lambda run: _last(run, "loss", held_out=True), -1),
    Measure("Held-out loss, least", lambda run: _least(run, held_out=True), -1),
    Measure("Held-out perplexity, last", lambda run: _last(run, "perplexity", held_out=True), -1),
    Measure("Time of training", _time),
    Measure("Throughput, median", _median("tokens_per_second", "tokens/s"), 1),
    Measure("Throughput of a rank, median", _median("tokens_per_second_per_rank", "tokens/s"), 1),
    Measure("Operations of a rank, median", _median("tflops_per_rank", "TFLOP/s"), 1),
    Measure("MFU, median", _median("mfu", "%", 100), 1),
    Measure("Memory, most", _most("memory_gb", "GB"), -1),
    Measure("Waits for data", _waited, -1),
    Measure("Norm of the gradient, median", _median("grad_norm", "")),
    Measure("Steps skipped", _count),
)


def compare(runs: Sequence[History]) -> list[tuple[str, list[Outcome | None], set[int]]]:
    """For each measure that a run has: its name, that of each run, and which of several runs are best."""
    told = []
    for name, read, better in MEASURES:
        found = [read(run) for run in runs]
        if not any(found):
            continue
        values = {i: one.value for i, one in enumerate(found) if one and one.value is not None}
        top = max((better * value for value in values.values()), default=0.0)
        best = {i for i, value in values.items() if better and better * value == top}
        told.append((name, found, best if 1 <= len(best) < len(values) else set[int]()))
    return told


def differing(runs: Sequence[History]) -> list[tuple[str, list[str | None]]]:
    """Settings that are not the same in all of `runs`, and what they are in each; where a run writes, it may."""
    names = {name: None for run in runs for name in run.settings if name != "out"}
    both = [(name, [run.settings.get(name) for run in runs]) for name in names]
    return [(name, values) for name, values in both if len({*values}) > 1]


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
