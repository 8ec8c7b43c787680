"""A rank that is lost ends all of them within a bound, by its name; started again they go on as if nothing had been."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ranks import Run
from starting import ROOT, alone, numbers, rows_of, torchrun
from training import SMALL, train

from omni_mesh import MeshConfig

BOUND_S = 180
"""Of starting twice, noticing, and the 30 seconds in which a launcher waits for a stopped rank to leave."""
ASKED = [
    *("--steps", "6", "--dtype", "float32", "--batch", str(SMALL.batch), "--seq-len", str(SMALL.seq_len)),
    *("--virtual-shards", str(SMALL.virtual_shards), "--save-every", "2", "--shard", "2"),
]
SAVED = ("--save-in-background", "False")
"""The checkpoint of step 2 is there, and nothing under way, when a step is struck."""


def run_faulty(folder: Path, deed: str, *more: str, by: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """How a run of two ranks ends to one of which something happens, and what it says, once every process has ended."""
    (folder / "ranks").mkdir()
    main = [str(ROOT / "tests" / "faulty_main.py"), *ASKED, "--out", str(folder / "run"), *more]
    env = alone() | {"OMP_NUM_THREADS": "1", "DEED": deed, "FOLDER": str(folder / "ranks")}
    began = time.monotonic()
    # The ranks hold the pipes too, so it waits for them.
    done = subprocess.run(
        [sys.executable, *by, *main], check=False, capture_output=True, text=True, env=env, timeout=240
    )
    assert (folder / "ranks" / "done").exists()
    assert time.monotonic() - began < BOUND_S
    for pid in [int(file.name) for file in (folder / "ranks").iterdir() if file.name != "done"]:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    return done.returncode, done.stdout, done.stderr


def test_a_rank_that_is_killed_in_a_step_ends_all_and_is_named(tmp_path: Path) -> None:
    code, _, errors = run_faulty(tmp_path, "step:SIGKILL", *SAVED)
    assert code == 128 + signal.SIGKILL
    assert errors.startswith("Rank 1 of 2 was killed by SIGKILL, "), "and nothing was said before"


@pytest.mark.parametrize(
    ("deed", "by", "more", "told"),
    [
        ("save:SIGKILL", torchrun(2, "--max-restarts", "1"), (), ""),
        (
            "step:SIGSTOP",
            (),
            ("--max-restarts", "1", "--timeout-s", "4", *SAVED),
            "To blame: rank 1 of 2, which does not answer: it is stopped,",
        ),
    ],
    ids=["by torchrun, killed in a save", "by itself, stopped in a step"],
)
def test_a_run_that_is_started_again_is_the_unbroken_run(
    deed: str, by: tuple[str, ...], more: tuple[str, ...], told: str, run: Run, tmp_path: Path
) -> None:
    code, words, errors = run_faulty(tmp_path, deed, *more, by=by)
    assert code == 0, errors
    assert told in errors
    assert f"continues {tmp_path / 'run' / 'step-00000002'}\n" in words
    config = replace(SMALL, steps=6, mesh=MeshConfig(shard=2))
    assert numbers(rows_of(tmp_path / "run")) == numbers(run(train, 2, replace(config, out=tmp_path / "whole"))[0])
