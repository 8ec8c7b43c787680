"""What the command line says of its flags."""

import re
from itertools import pairwise
from typing import Any

import pretrain
import pytest
import sft
from flags import parse

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
