"""What the command line says of its flags."""

import json
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import checkpoint
import infer
import merge
import omni
import plan
import pretrain
import pytest
import sft
from elsewhere import ELSEWHERE, MORE, OTHERWISE, flag_names
from flags import parse
from starting import run_script

TOLD = re.compile(r" {20,}\S")
"""A line of the help with words of what a flag is, and no flag."""


def read_help(app: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """What `--help` prints."""
    with pytest.raises(SystemExit):
        parse(app.Config, app.__doc__, told=getattr(app, "TOLD", {}), args=["--help"])
    return capsys.readouterr().out


def flag(name: str, told: str) -> str:
    """What help says of a flag, in one line."""
    words = " ".join(line.strip(" |│") for line in told.splitlines())
    return re.search(rf"--{name} [A-Z\[{{].*?\(default: .*?\)", words)[0]  # type: ignore[index]


@pytest.mark.parametrize("app", [pretrain, sft])
def test_lines_of_the_help_are_those_of_the_terminal(app: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.strip("|│").rstrip() for line in read_help(app, capsys).splitlines()]
    width = max(map(len, filter(TOLD.match, lines)))
    continued = [(line, after) for line, after in pairwise(lines) if TOLD.match(line) and TOLD.match(after)]
    assert len(continued) > 50
    for line, after in continued:
        assert len(line) + 1 + len(after.split()[0]) > width - 2, f"{line}\n{after}"


def test_minus_one_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert "-1: as many as there are ranks or GPUs" in flag("shard", read_help(pretrain, capsys))


def test_finetuning_says_what_flags_are_to_chats(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = read_help(sft, capsys), read_help(pretrain, capsys)
    assert "Left out: those of --model" in flag("weights", ours) and "random weights" in flag("weights", theirs)
    assert "file of chats" in flag("data", ours) and "a document a line" in flag("data", theirs)
    assert "--field" not in ours and "--field STR" in theirs
    with pytest.raises(ValueError, match=r"--field talk has no meaning for chats"):
        sft.decide_chats(parse(sft.Config, None, args=["--field", "talk"]))


def test_what_packages_refuse_is_told_by_flags_also_where_a_rank_does(tmp_path: Path) -> None:
    texts = [{"text": "a row " * 20}, *[{"text": 3}] * 3]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))

    def ask(*flags: str) -> str:
        words = ("--data", "web.jsonl", "--steps", "2", "--shard", "1", *flags)
        done = run_script(Path(pretrain.__file__), *words, folder=tmp_path)
        assert done.returncode == 2
        return done.stderr

    assert "Did you mean --field text?" in ask("--field", "txet")
    assert "documents cannot be used, of --max-bad 1:" in ask("--max-bad", "1")
    (tmp_path / "web.jsonl").write_text(json.dumps(texts[0]))
    assert "let --packing.long drop" in ask("--packing.how", "fit", "--packing.long", "error", "--packing.max-len", "9")


def test_flag_names_other_tools_are_called_by_their_names_here(capsys: pytest.CaptureFixture[str]) -> None:
    for app, words, told in (
        (
            pretrain,
            ["--learning-rate", "1", "--num_train_epochs=2"],
            "--learning-rate is --optim.lr here.\n--num-train-",
        ),
        (sft, ["--output-dir", "x"], "--output-dir is --out here."),
        (
            pretrain,
            ["--per-device-train-batch-size", "1", "--logging_steps", "5", "--gradient-checkpointing"],
            "--per-device-train-batch-size is --micro here. --batch is of all ranks and passes.\n"
            "--logging-steps has none here: each step has its line, and its row in metrics.jsonl.\n"
            "--gradient-checkpointing is --recompute.every 1 here.",
        ),
        (infer, ["model", "--max-new-tokens", "3"], "--max-new-tokens is --tokens here."),
        (plan, ["--num-gpus", "8", "--nodes", "2"], "--num-gpus is --gpus here, of all machines together.\n--nodes is"),
        (pretrain, ["--gpus", "8"], "--gpus follows here: a rank on each GPU there is"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parse(app.Config, None, args=words)
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        parse(infer.Config, None, args=["model", "--lr", "3", "--model-path", "x"])
    assert " here." not in capsys.readouterr().err


def test_what_flag_names_other_tools_are_called_here_are_flags() -> None:
    apps = (pretrain, sft, omni, infer, merge, plan)
    named = {*ELSEWHERE, *MORE, *(near for nears in OTHERWISE.values() for near in nears)}
    assert named <= set().union(*(flag_names(app.Config) for app in apps))
    assert not {name for names in ELSEWHERE.values() for name in names} & set(OTHERWISE), "told once"


def test_who_leaves_out_what_an_app_needs_is_shown_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for app, words, told in (
        (merge, ["runs/x"], "As in: uv run apps/merge.py runs/pretrain --to runs/pretrain/merged\n"),
        (checkpoint, [], "As in: uv run apps/checkpoint.py verify runs/pretrain\n"),
        (checkpoint, ["verify", "--steps", "3"], "As in: uv run apps/checkpoint.py verify runs/pretrain\n"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parse(app.Config, app.__doc__, args=words)
        assert capsys.readouterr().err.endswith(told)


@pytest.mark.parametrize("app", [pretrain, merge])
def test_who_has_seen_enough_of_the_help_sees_no_more(app: Any) -> None:
    command = [sys.executable, app.__file__, "--help"]
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_who_misspells_what_an_app_does_not_need_is_shown_none(tmp_path: Path) -> None:
    for app in (pretrain, plan):
        done = run_script(Path(app.__file__), "--misspelt", "3", folder=tmp_path)
        assert done.returncode == 2 and "Unrecognized options: --misspelt" in done.stderr
        assert "As in" not in done.stderr
