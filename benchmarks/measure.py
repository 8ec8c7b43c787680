"""Run a training app, and keep what it measured of itself as JSON: speed, memory, where it ran, and how.

    uv run benchmarks/measure.py --name qwen3-0.6b-1x -- --model qwen3-0.6b --seq-len 4096 --batch 4 --steps 30

The first steps compile and warm up; they are left out. Data wait is included. With `--check` nothing is written: the
run is compared with the record of its name, and the exit code is 1 if it is more than 5 % slower or takes more memory.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from os.path import normpath
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tyro

ROOT = Path(__file__).parent.parent
SLACK = 0.05
"""The share by which two runs of the same may differ."""


@dataclass(frozen=True, slots=True)
class Config:
    """One measurement."""

    name: str
    """Of the file to write: benchmarks/NAME.json."""
    args: tyro.conf.Positional[tuple[str, ...]]
    """Of the app, after `--`."""
    app: str = "pretrain.py"
    """In apps/."""
    skip: int = 5
    """First steps to leave out."""
    to: Path = ROOT / "benchmarks"
    """Folder to write to."""
    commit: str | None = None
    """Of the code measured. Left out: asked of git."""
    note: str = ""
    """What a reader should know."""
    check: bool = False
    """Compare with the record of that name instead of writing one."""


def main(config: Config) -> None:
    """Write the record and print it. Effect: runs a process, writes a file."""
    with TemporaryDirectory() as out:
        command = [sys.executable, str(ROOT / "apps" / config.app), *config.args, "--out", out]
        subprocess.run(command, check=True)
        rows = [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
    record = summarize(rows, config.skip) | {
        "command": " ".join(["uv run", normpath(f"apps/{config.app}"), *config.args]),
        "note": config.note,
        "date": date.today().isoformat(),
        "commit": config.commit or ask("git", "rev-parse", "HEAD"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "versions": {name: version(name) for name in ("torch", "transformers", "triton")}
        | {"cuda": torch.version.cuda},
    }
    print(json.dumps(record, indent=2))
    path = config.to / f"{config.name}.json"
    if config.check:
        if worse := compare(record, json.loads(path.read_text())):
            raise SystemExit("\n".join([f"worse than {path}:", *worse]))
        return
    config.to.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


def summarize(rows: list[dict[str, float]], skip: int) -> dict[str, float]:
    """Medians over the steps after the first `skip`, and the peak memory of all. Pure.

    Raises:
        ValueError: if no step is left.
    """
    kept = rows[skip:]
    if not kept:
        raise ValueError(f"{len(rows)} steps are no more than the {skip} to skip: run longer.")
    names = ("tokens_per_second", "tokens_per_second_per_rank", "tflops_per_rank", "seconds", "data_seconds")
    medians = {name: round(median(row[name] for row in kept), 4) for name in names}
    most = {"data_seconds_most": round(max(row["data_seconds"] for row in kept), 4)}
    return {"steps": len(kept), **medians, **most, "memory_gb": round(max(row["memory_gb"] for row in rows), 3)}


def compare(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """In what `now` is worse than `before` by more than `SLACK`, in words. Pure.

    Raises:
        ValueError: if they are of different GPUs.
    """
    if now["gpu"] != before["gpu"]:
        raise ValueError(f"the record is of {before['gpu']}, and this is {now['gpu']}: compare on the same.")
    speed, memory = "tokens_per_second_per_rank", "memory_gb"
    rules = ((speed, now[speed] < (1 - SLACK) * before[speed]), (memory, now[memory] > (1 + SLACK) * before[memory]))
    return [f"{name} is {now[name]:,.1f}, was {before[name]:,.1f}" for name, is_worse in rules if is_worse]


def ask(*command: str) -> str:
    """What `command` prints. Effect: runs a process."""
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
