"""The share of a peak that a step makes is that counted by hand, both ways; where no peak is known there is none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decide import decide
from measures import Known, tell_step
from mfu import find_peak, peak_of
from reporter import Reporter
from test_reporter import HERE, NUMBERS, metrics
from training import SMALL


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA GB200", 2500),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L40", None),
        ("NVIDIA A100 80GB PCIe MIG 1g.10gb", None),
        ("AMD EPYC", None),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, peak: float | None) -> None:
    assert find_peak(name) == peak


def test_a_step_counts_attention_as_it_is_and_as_a_square(tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path)
    run = decide(config, 1)
    with Reporter(config, run, HERE, first=0) as report:
        report.note(1, metrics(), {}, **NUMBERS)
        report.peak = 100.0
        report.note(2, metrics(), {}, **NUMBERS)
    without, row = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    facts, speed = run.facts, row["tokens_per_second_per_rank"] / 100e12
    width = facts.num_layers * facts.num_heads * facts.head_dim
    reach = NUMBERS["data"].reach
    assert row["mfu"] == pytest.approx(speed * (6 * facts.active_params + 6 * width * reach))
    assert row["mfu"] == pytest.approx(row["tflops_per_rank"] / 100)
    assert row["mfu_full_square"] == pytest.approx(speed * (6 * facts.active_params + 12 * width * config.seq_len))
    assert not {"mfu", "mfu_full_square"} & without.keys()


def test_towers_are_part_of_both() -> None:
    known = Known(lr=0.0, tokens=10, tokens_so_far=10, waited=0.0, ranks=1, flops=1e11, flops_full=2e11, peak=10.0)
    values = {"loss": 0.0, "tower_tflops_per_rank": 3.0}
    row = tell_step(1, values, known, seconds=1.0, memory_gb=1.0, loads={})
    assert (row["mfu"], row["mfu_full_square"]) == pytest.approx((0.4, 0.5))


def test_there_is_no_peak_of_a_cpu() -> None:
    assert peak_of(torch.device("cpu"), torch.bfloat16) is None


@pytest.mark.gpu
def test_there_is_no_peak_of_a_gpu_in_fp32() -> None:
    assert peak_of(torch.device("cuda"), torch.float32) is None
