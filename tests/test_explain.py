"""What `--explain` prints: the decision, which kernel would be used where, and why not another; nothing is started."""

from pathlib import Path
from types import ModuleType

import bench
import pretrain
import pytest
from decide import decide
from explain import explain_run
from request import Config
from starting import run_script
from training import SMALL, write_family


@pytest.mark.parametrize("app", [pretrain, bench])
def test_it_is_printed_and_nothing_is_started_or_written(app: ModuleType, tmp_path: Path) -> None:
    done = run_script(Path(str(app.__file__)), "--explain", "--shard", "2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mesh      shard 2" in done.stdout
    assert "step   " in done.stdout and "tokens/s" not in done.stdout
    for part in ("attention", "loss", "kernels", "norms", "gates", "rotations", "tiles", "linear"):
        assert f"\n{part:<10}" in done.stdout
    assert not list(tmp_path.rglob("*.jsonl")) and not list(tmp_path.rglob("step-*"))


def test_a_laptop_answers_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    config = Config(
        **{field: getattr(SMALL, field) for field in ("out", "mesh", "batch", "virtual_shards")},
        model=write_family("gemma2", tmp_path),
        tokenizer="bytes",
        explain=True,
    )
    run = decide(config, 1)
    told = explain_run(config, run)
    assert told.startswith(run.told())
    if run.device == "cpu":
        here, there = told.partition("on a GPU of compute capability 9.0, in torch.bfloat16")[::2]
        assert "not fp8: linear=fp8 multiplies 8-bit floats on GPUs, not on cpu" in here
        assert "fp8 would fit, with other numbers: --linear fp8" in there
    assert "not chunked: gemma2 changes its logits after the head" in told


def test_without_the_flag_nothing_is_told() -> None:
    assert explain_run(SMALL, decide(SMALL, 1)) == ""
