"""Laws of the command that verifies: its exit code, its words, and what it says to a program."""

import json
from pathlib import Path

import pytest
import torch
from verify import Config, main

from omni_ckpt import save_dcp, step_dir


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    for step in (1, 2):
        save_dcp({"w": torch.ones(100), "step": step}, step_dir(tmp_path, step))
    return tmp_path


def test_what_is_whole_is_told_and_exits_quietly(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(Config(saved))
    assert [": whole, 3 files" in line for line in capsys.readouterr().out.splitlines()] == [True, True]
    main(Config(step_dir(saved, 2)))
    assert capsys.readouterr().out.count(": whole") == 1


@pytest.mark.parametrize("harmed", ["__0_0.distcp", "MANIFEST.json"])
def test_what_is_damaged_is_named_and_exits_with_one(
    saved: Path, harmed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (step_dir(saved, 2) / harmed).unlink()
    with pytest.raises(SystemExit, match="1"):
        main(Config(saved))
    words = capsys.readouterr().out
    assert "step-00000001: whole" in words
    assert "step-00000002: damaged" in words
    assert harmed in words.splitlines()[-1]
    with pytest.raises(SystemExit, match="1"):
        main(Config(saved, json=True))
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["problems"], first["files"]) == ([], 3)
    assert harmed in second["problems"][0]


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a checkpoint of omni_ckpt: it has no MANIFEST\.json"):
        main(Config(tmp_path))
