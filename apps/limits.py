"""The numbers of a request: each is finite and in its range, and is told by the name of its flag. Pure."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from request import Config


class Limit(NamedTuple):
    """What a number must be."""

    holds: Callable[[float], bool]
    words: str


def _from(least: float, most: float = math.inf) -> Limit:
    above = f" and at most {most:g}" if most < math.inf else ""
    return Limit(lambda value: least <= value <= most, f"at least {least}{above}")


_FRACTION: Final = Limit(lambda value: 0 <= value < 1, "at least 0 and less than 1")
_POSITIVE: Final = Limit(lambda value: value > 0, "positive")

LIMITS: Final = {
    **dict.fromkeys(("steps", "stop_after", "save_every", "keep", "keep_every", "max_skips", "eval.every"), _from(1)),
    **dict.fromkeys(("keep_best", "max_restarts", "max_bad", "workers", "mix.epochs", "tile_mlp"), _from(0)),
    **dict.fromkeys(("packing.cost.token", "packing.cost.square", "packing.cost.media"), _from(0)),
    **dict.fromkeys(("packing.max_len", "eval.documents"), _from(1)),
    "seq_len": _from(2),
    "leave_code": _from(0, 255),
    "profile": _from(1),
    "seed": _from(0, 2**63 - 1),
    "timeout_s": _from(1, 1e8),
    "optim.lr": _from(0),
    "optim.betas": _FRACTION,
    "optim.eps": _POSITIVE,
    "optim.weight_decay": _from(0),
    "optim.max_norm": _POSITIVE,
}
"""By flat name. Numbers that are not here depend on others, and are looked at with these."""
_MAY_BE_INFINITE: Final = ("optim.max_norm",)
"""Where that means something: there, that nothing is clipped."""


def check_numbers(config: Config) -> None:
    """Raises `ValueError` if numbers of `config` are not finite, or out of their range, with all of them. Pure."""
    flat = flat_values(asdict(config))
    told = [
        f"--{name.replace('_', '-')} {value} must be {words}."
        for name, given in flat.items()
        for value in (given if isinstance(given, tuple) else (given,))
        if isinstance(value, int | float) and (words := _find_wrong(name, value))
    ]
    told += _find_unprofiled(config)
    if told:
        raise ValueError("\n".join(told))


def flat_values(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`values`, of which those inside of others have names with dots, as flags have. Pure.

    >>> flat_values({"steps": 3, "optim": {"lr": 0.1}})
    {'steps': 3, 'optim.lr': 0.1}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flat_values(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _find_wrong(name: str, value: float) -> str:
    """What `value` of the flag `name` must be, and is not; nothing if it is."""
    if not math.isfinite(value) and (math.isnan(value) or name not in _MAY_BE_INFINITE):
        return "a finite number"
    limit: Any = LIMITS.get(name)
    return "" if limit is None or limit.holds(value) else limit.words


def _find_unprofiled(config: Config) -> list[str]:
    """What keeps the steps of --profile from being some of the run."""
    if not (given := config.profile):
        return []
    told, stop = f"--profile {' '.join(map(str, given))}", min(config.steps, config.stop_after or config.steps)
    first, *rest = given
    last = rest[-1] if rest else first
    if len(rest) > 1:
        return [f"{told} names {len(given)} steps: give the first and the last, or one."]
    if last < first:
        return [f"{told} ends before it begins: give the first step, then the last."]
    if last > stop:
        return [f"{told} goes on after the last step of the run, which is {stop}: choose steps until there."]
    return []
