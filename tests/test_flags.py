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


def read_help(config_type: Any, manual: str | None, capsys: pytest.CaptureFixture[str]) -> str:
    """What `--help` prints."""
    with pytest.raises(SystemExit):
        parse(config_type, manual, args=["--help"])
    return capsys.readouterr().out


def flag(name: str, told: str) -> str:
    """What help says of a flag, in one line."""
    words = " ".join(line.strip(" |│") for line in told.splitlines())
    return re.search(rf"--{name} .*?\(default: .*?\)", words)[0]  # type: ignore[index]


@pytest.mark.parametrize("app", [pretrain, sft])
def test_lines_of_the_help_are_those_of_the_terminal(app: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.strip("|│").rstrip() for line in read_help(app.Config, app.__doc__, capsys).splitlines()]
    width = max(map(len, filter(TOLD.match, lines)))
    continued = [(line, after) for line, after in pairwise(lines) if TOLD.match(line) and TOLD.match(after)]
    assert len(continued) > 50
    for line, after in continued:
        assert len(line) + 1 + len(after.split()[0]) > width - 2, f"{line}\n{after}"


def test_minus_one_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert "-1: as many as there are ranks or GPUs" in flag("shard", read_help(pretrain.Config, None, capsys))
