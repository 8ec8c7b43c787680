"""What a checkpoint says of the run that wrote it, for people and programs: JSON with a version."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from decide import Decision
from request import Config

VERSION: Final = 1
"""Of what `tell_about` gives. A reader of this version reads all before it."""
_SECRETS: Final = (
    (re.compile(r"(?<=://)[^/\s@]+@"), "***@"),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "***"),
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{12,}"), "***"),
    (re.compile(r"(?i)(?<=[?&])((?:[\w-]*(?:token|key|secret|signature|password)[\w-]*)=)[^&\s]+"), r"\1***"),
)


def tell_about(
    config: Config, run: Decision, *, tokens: int, metrics: Mapping[str, float], best: Any
) -> dict[str, Any]:
    """What is stored under `about`. Pure.

    Args:
        config: what was asked for; secrets in it are left out.
        run: what was decided.
        tokens: seen by the run.
        metrics: of the last step.
        best: the least loss of the run and its step.
    """
    return {
        "version": VERSION,
        "tokens": tokens,
        "metrics": dict(metrics),
        "best": best,
        "schedule": {"peak": config.optim.lr, "steps": config.steps, "warmup": config.warmup},
        # Every step seeds the generators of torch, CUDA, numpy and Python from these three: see `seed_all_`.
        "random": {"seed": config.seed, "key": ["seed", "step", "rank"]},
        "mesh": dict(run.spec.base),
        "config": plain_config(asdict(config)),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def check_about(about: Mapping[str, Any], path: Path) -> None:
    """Raises `ValueError` if `about`, of checkpoint `path`, has a version that is not read here. Pure."""
    if about.get("version", VERSION) not in range(1, VERSION + 1):
        raise ValueError(
            f"{path} was written by a newer version of this app (about {about['version']}, here {VERSION})."
        )


def plain_config(value: Any) -> Any:
    """A configuration as plain values, without secrets. Pure.

    >>> plain_config({"data": "s3://key:word@bucket/x", "betas": (0.9, 0.95)})
    {'data': 's3://***@bucket/x', 'betas': [0.9, 0.95]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain_config(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_config(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else without_secrets(str(value))


def without_secrets(text: str) -> str:
    """`text` with what looks like a password, a token or a key taken out. Pure.

    >>> without_secrets("--weights https://x.org/m?token=abc&v=1 hf_abcdefghij")
    '--weights https://x.org/m?token=***&v=1 ***'
    """
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text
