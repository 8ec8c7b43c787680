"""Is every file of a checkpoint what was written? Reads all of them, loads and runs nothing, needs no GPU.

uv run apps/verify.py runs/pretrain                    every checkpoint of a run
uv run apps/verify.py runs/pretrain/step-00000100      one of them
uv run apps/verify.py runs/pretrain --json             a JSON object a line

Exits with 0 if all are whole, with 1 if one is not.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from preflight import run

from omni_ckpt import Report, steps, verify


@dataclass(frozen=True, slots=True)
class Config:
    """What to verify."""

    path: tyro.conf.Positional[Path]
    """A checkpoint, or the directory of a run, of which all are meant."""
    json: bool = False
    """Tell it to a program."""


def main(config: Config) -> None:
    """Print a line for each checkpoint and for what is wrong with it. Effect: reads; exits with 1 if something is.

    Raises:
        ValueError: if there is no checkpoint.
    """
    paths = steps(config.path) or (config.path,)
    reports = [look(path) for path in paths]
    for report in reports:
        print(json.dumps(asdict(report) | {"path": str(report.path)}) if config.json else told(report), flush=True)
    if any(report.problems for report in reports):
        sys.exit(1)


def look(path: Path) -> Report:
    """What `verify` finds; of a checkpoint whose manifest cannot be read, that."""
    try:
        return verify(path)
    except ValueError as problem:
        if not path.name.startswith("step-"):
            raise
        return Report(path, 0, 0, (str(problem),))


def told(report: Report) -> str:
    """`report` in words, a line for each problem. Pure."""
    size = f"{report.files} files, {report.nbytes / 1e6:,.1f} MB"
    return "\n".join(
        [f"{report.path}: {'damaged' if report.problems else 'whole'}, {size}", *(f"  {p}" for p in report.problems)]
    )


if __name__ == "__main__":
    run(main, Config, __doc__)
