"""Schedules: functions from a step (counted from zero) to a learning rate. All pure."""

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant(value: float) -> Schedule:
    """`value` at every step.

    >>> constant(0.1)(1000)
    0.1
    """
    return lambda step: value


def linear(start: float, stop: float, steps: int) -> Schedule:
    """A line from `start` at step 0 to `stop` at step `steps`, and `stop` after it.

    >>> linear(1.0, 0.0, 4)(1)
    0.75
    """
    if steps < 1:
        raise ValueError(f"a line needs at least one step, got steps={steps}.")
    return lambda step: start + (stop - start) * min(step, steps) / steps


def warmup_cosine(peak: float, warmup: int, total: int, *, final: float = 0.0) -> Schedule:
    """A line up to `peak` over `warmup` steps, then half a cosine down to `final` at step `total`, and `final` after.

    The first step has `peak / warmup`, so that no step is lost at a rate of zero; step `warmup - 1` is the first with
    `peak`. After Loshchilov and Hutter, 2016 (arXiv:1608.03983).

    Args:
        peak: the largest rate.
        warmup: steps of the line; 0 starts at `peak`.
        total: steps of the whole run.
        final: the last rate.

    Raises:
        ValueError: unless 0 <= warmup < total.
    """
    _check_warmup(warmup, total)

    def schedule(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        done = min(1.0, (step - warmup) / (total - warmup))
        return final + 0.5 * (peak - final) * (1.0 + math.cos(math.pi * done))

    return schedule


def warmup_stable_decay(peak: float, warmup: int, decay: int, total: int, *, final: float = 0.0) -> Schedule:
    """A line up to `peak`, `peak` itself, then over the last `decay` steps a line down to `final`.

    After Hu et al., 2024 (MiniCPM, arXiv:2404.06395).

    Raises:
        ValueError: unless warmup and decay are not negative and fit into total together.
    """
    _check_warmup(warmup, total)
    if decay < 0 or warmup + decay > total:
        raise ValueError(
            f"warmup={warmup} and decay={decay} steps do not fit into total={total}: shorten one or run longer."
        )

    def schedule(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        if step < total - decay:
            return peak
        return linear(peak, final, max(decay, 1))(step - (total - decay))

    return schedule


def _check_warmup(warmup: int, total: int) -> None:
    if not 0 <= warmup < total:
        raise ValueError(f"warmup={warmup} steps must be at least 0 and fewer than the run's total={total}.")
