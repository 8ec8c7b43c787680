"""This version goes on from a run of the first one: every tensor, the place in the data, and the numbers after it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from golden import GOLDEN, config_in
from ranks import Run
from training import train

from omni_ckpt import inspect, load_dcp, steps, stored, verify
from omni_mesh import MeshConfig


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_of_the_first_version_goes_on(ranks: int, run: Run, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "golden")
    rows = run(train, ranks, config_in(tmp_path / "golden", mesh=MeshConfig(shard=ranks)))[0]
    expected = json.loads((GOLDEN / "expected.json").read_text())
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for mine, theirs in zip(rows, expected, strict=True):
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, rel=1e-5), name


def test_shards_that_were_swapped_are_named_and_not_loaded(tmp_path: Path) -> None:
    (path,) = steps(shutil.copytree(GOLDEN / "run", tmp_path / "run"))
    one, other, aside = (path / name for name in ("__0_0.distcp", "__1_0.distcp", "aside"))
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    assert [problem.split()[0] for problem in verify(path).problems] == [str(one), str(other)]
    tree = {name: torch.zeros(spec.shape, dtype=spec.dtype) for name, spec in stored(path).items()}
    with pytest.raises(ValueError, match=r"step-00000002 is damaged: "):
        load_dcp(tree, path, strict=False)
    assert not any(tensor.any() for tensor in tree.values())


def test_it_is_whole_small_and_says_what_it_is() -> None:
    (path,) = steps(GOLDEN / "run")
    assert verify(path).problems == ()
    assert inspect(path).plain["about"]["version"] == 1
    assert sum(file.stat().st_size for file in GOLDEN.rglob("*") if file.is_file()) < 200_000
