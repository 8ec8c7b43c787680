"""Runs of the apps in processes of their own, as a person or torchrun starts them."""

import json
import os
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXACT = ("step", "loss", "grad_norm", "lr")


def numbers(rows: list[dict[str, float]]) -> list[list[float]]:
    """What of each step is to be the same to the bit."""
    return [[row[name] for name in EXACT] for row in rows]


def rows_of(out: Path) -> list[dict[str, float]]:
    """The metrics of a run, a row a step."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def torchrun(ranks: int, *how: str) -> tuple[str, ...]:
    """What starts ranks of a script, after the interpreter and before the script."""
    how = ("--nproc-per-node", str(ranks), "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *how)
    return ("-m", "torch.distributed.run", *how)


def alone() -> dict[str, str]:
    """The environment of a process that is no rank."""
    return {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
