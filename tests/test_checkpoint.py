"""Laws of the command that looks at checkpoints: its exit code, its words, and what it says to a program."""

import json
from pathlib import Path

import pytest
import torch
from checkpoint import Inspect, Verify, main

from omni_ckpt import save_dcp, step_dir

ABOUT = {"mesh": {"shard": 2, "sp": 1}, "metrics": {"loss": 1.5}, "config": {"model": "tiny"}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    for step in (1, 2):
        save_dcp(
            {"w": torch.ones(100, 2).bfloat16(), "state": {"step": step}, "about": ABOUT}, step_dir(tmp_path, step)
        )
    return tmp_path


def test_what_is_whole_is_told_and_exits_quietly(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(Verify(str(saved)))
    assert [": whole, 3 files" in line for line in capsys.readouterr().out.splitlines()] == [True, True]
    main(Verify(str(step_dir(saved, 2))))
    assert capsys.readouterr().out.count(": whole") == 1


@pytest.mark.parametrize("harmed", ["__0_0.distcp", "MANIFEST.json"])
def test_what_is_damaged_is_named_and_exits_with_one(
    saved: Path, harmed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (step_dir(saved, 2) / harmed).unlink()
    with pytest.raises(SystemExit, match="1"):
        main(Verify(str(saved)))
    words = capsys.readouterr().out
    assert "step-00000001: whole" in words
    assert "step-00000002: damaged" in words
    assert harmed in words.splitlines()[-1]
    with pytest.raises(SystemExit, match="1"):
        main(Verify(str(saved), json=True))
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["problems"], first["files"]) == ([], 3)
    assert harmed in second["problems"][0]


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a checkpoint of omni_ckpt: it has no MANIFEST\.json"):
        main(Verify(str(tmp_path)))
    with pytest.raises(ValueError, match=r"there is no .*absent"):
        main(Verify(str(tmp_path / "absent")))


def test_what_is_in_it_is_told(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(Inspect(str(step_dir(saved, 2))))
    words = capsys.readouterr().out
    assert "step-00000002: whole at first sight" in words
    for line in (
        "step      2",
        "mesh      shard 2",
        "metrics   loss 1.5",
        "model     tiny",
        "bfloat16  100x2            w",
    ):
        assert f"  {line}\n" in words
    assert "__0_0.distcp" in words
    main(Inspect(str(saved), json=True))
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["tensors"] == second["tensors"] == {"w": {"shape": [100, 2], "dtype": "bfloat16"}}
    assert second["plain"]["state"]["step"] == 2
    assert len(first["files"]["__0_0.distcp"]["digest"]) == 32


@pytest.mark.parametrize("harmed", ["state.json", ".metadata", "__0_0.distcp"])
def test_what_cannot_be_inspected_is_named(saved: Path, harmed: str, capsys: pytest.CaptureFixture[str]) -> None:
    (step_dir(saved, 2) / harmed).unlink()
    with pytest.raises(SystemExit, match="1"):
        main(Inspect(str(saved)))
    assert harmed in capsys.readouterr().out
