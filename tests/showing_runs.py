"""Folders of runs as the apps leave them, made without training, for tests of what shows them."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from strict_yaml import tell_yaml

CONFIG = {"version": 1, "model": "tiny", "data": ["builtin"], "steps": 100, "shard": 1, "out": "runs/x"}


def rows_of(count: int, *, worse: float = 0.0, more: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Rows of metrics as a run of the apps on one rank has them."""
    return [
        {
            "step": step,
            "loss": 2 + worse + 4 / (1 + step / 50) + 0.1 * math.sin(step * 12.9898),
            "targets": 3060 + step % 7,
            "grad_norm": 1 + 0.5 * abs(math.sin(step * 78.233)),
            "fill": 0.99 - 0.01 * (step % 3),
            "lr": 1e-3 * (1 - 0.05 * min(step, 10)),
            "tokens": 3072 * step,
            "seconds": (3.0 if step == 1 else 0.4) + 0.01 * (step % 5),
            "data_seconds": 0.001 * (1 + step % 4),
            "tokens_per_second": 7680.0 - 10 * (step % 5),
            "tokens_per_second_per_rank": 7680.0 - 10 * (step % 5),
            "tflops_per_rank": 0.04,
            "memory_gb": 1.1 + 0.001 * min(step, 20),
            **(more or {}),
        }
        for step in range(1, count + 1)
    ]


def make_run(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    settings: Mapping[str, Any] | None = CONFIG,
    held_out: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """A folder with these rows of steps and of what is held out, and these settings; returns it."""
    path.mkdir(parents=True)
    for name, some in (("metrics.jsonl", rows), ("eval.jsonl", held_out)):
        if some:
            (path / name).write_text("".join(json.dumps(row) + "\n" for row in some))
    if settings is not None:
        (path / "config.yaml").write_text(tell_yaml(CONFIG | settings if settings is CONFIG else settings))
    return path
