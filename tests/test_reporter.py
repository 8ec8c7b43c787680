"""Laws of what is told of steps: each has its own time, and an error does not hide the step before it."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compute import GATHERED_BYTES, choose_gathered
from decide import decide
from reporter import Reporter
from step import DataTold
from training import SMALL

from omni_ckpt import save_dcp, step_dir
from omni_data import Cursor
from omni_mesh import MeshSpec, World
from omni_models import ModelFacts, build_model, describe, read_config

HERE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
NUMBERS: dict[str, Any] = {"cursor": Cursor(12), "data": DataTold(10.0, 0.0)}


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def metrics(loss: float = 1.0) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(loss), "grad_norm": torch.tensor(2.0), "targets": torch.tensor(5)}


def test_a_step_is_told_with_its_own_time_and_a_save_is_in_none(tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path)
    with Reporter(config, decide(config), HERE, first=0) as report:
        for step, seconds in ((1, 0.05), (2, 0.2), (3, 0.05)):
            time.sleep(seconds)
            report.note(step, metrics(), {}, **NUMBERS)
            if step == 2:
                report.tell()
                time.sleep(0.5)
                report.skip_time()
    rows = read(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row, seconds in zip(rows, (0.05, 0.2, 0.05), strict=True):
        assert seconds <= row["seconds"] < seconds + 0.45


def test_an_error_does_not_hide_the_step_before_it(tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path)
    report = Reporter(config, decide(config), HERE, first=0)
    with pytest.raises(KeyError), report:
        report.world = replace(HERE, device=torch.device("meta"))  # As on a GPU, nothing is told at once.
        report.note(1, metrics(), {}, **NUMBERS)
        assert not (tmp_path / "metrics.jsonl").exists()
        report.world = HERE
        raise KeyError
    assert [row["step"] for row in read(tmp_path)] == [1]


def test_a_number_that_is_not_finite_is_told_before_what_came_of_it(tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path, max_skips=1)
    report = Reporter(config, decide(config), HERE, first=0)
    with pytest.raises(FloatingPointError, match="at step 1 loss is nan"), report:
        report.world = replace(HERE, device=torch.device("meta"))
        report.note(1, metrics(float("nan")), {}, **NUMBERS)
        report.world = HERE
        raise KeyError


def test_what_stands_is_said_at_a_numerical_stop_and_nothing_if_there_is_none(tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path, max_skips=1)
    report = Reporter(config, decide(config), HERE, first=0)
    with pytest.raises(
        FloatingPointError, match="is saved: no checkpoint is complete yet, so the next run starts anew"
    ):
        report.note(1, metrics(float("nan")), {}, **NUMBERS)
    with pytest.raises(FloatingPointError, match="no checkpoint is complete yet"):
        report.check_end(saved=False)
    save_dcp({"w": torch.ones(1)}, step_dir(tmp_path, 7))
    for stop in (lambda: report.note(2, metrics(float("nan")), {}, **NUMBERS), lambda: report.check_end(saved=False)):
        with pytest.raises(FloatingPointError, match=r"is saved: .*/step-00000007 stands\."):
            stop()


def facts_of(**changes: Any) -> ModelFacts:
    return replace(describe(build_model(read_config("tiny-moe"), device="meta")), **changes)


@pytest.mark.parametrize(
    ("facts", "spec", "kept"),
    [
        ({"block_params": 1000}, MeshSpec(shard=2, ep=2), True),
        ({"block_params": GATHERED_BYTES}, MeshSpec(shard=2, ep=2), False),
        ({"num_params": GATHERED_BYTES}, MeshSpec(shard=4, ep=2), False),
        ({"num_params": GATHERED_BYTES}, MeshSpec(shard=2), False),
        ({"num_params": 1000}, MeshSpec(shard=2), True),
    ],
    ids=["alone", "alone, large blocks", "experts shared", "experts in blocks", "small"],
)
def test_what_is_small_stays_gathered_on_gpus(facts: dict[str, int], spec: MeshSpec, kept: bool) -> None:
    for device in ("cuda", "cpu"):
        found = choose_gathered(SMALL, facts_of(**facts), spec, device, torch.bfloat16)
        assert found == (kept and device == "cuda")
        assert (
            choose_gathered(replace(SMALL, keep_gathered=not kept), facts_of(**facts), spec, device, torch.bfloat16)
            != kept
        )
