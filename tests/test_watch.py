"""Laws of what a run says of itself: no row is lost in silence, and what is said to stand does."""

import json
import os
from pathlib import Path

import pytest
from watch import append_row, forget_after, progress_line, say


def write_rows(path: Path, steps: int) -> str:
    for step in range(1, steps + 1):
        append_row(path, {"step": step})
    return path.read_text()


def test_rows_that_are_written_again_go_and_that_is_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert forget_after(path, 3) == ""
    write_rows(path, 3)
    assert forget_after(path, 3) == ""
    write_rows(path, 0)
    append_row(path, {"step": 4})
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert forget_after(path, 3) == f"{path} has rows after step 3, 2 of them: they go, and are written again."
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_row_that_cannot_be_written_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"metrics.jsonl cannot be written: No space left on device. Make room"):
        append_row(tmp_path / "metrics.jsonl", {"step": 1})


def test_a_run_whose_output_nobody_reads_any_more_says_why_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        say("one", "two")
        assert os.read(ours, 99) == b"one\ntwo\n"
        os.close(ours)
        with pytest.raises(ValueError, match=r"what read the output of this run has ended, and so does the run"):
            say("three")
        say("and nothing is left that Python could stumble over at exit")


def test_rows_of_a_run_that_left_no_checkpoint_stay_beside_those_of_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert forget_after(path, 0) == ""
    for n, steps in ((1, 3), (2, 2)):
        written = write_rows(path, steps)
        assert forget_after(path, 0).endswith(f"they are kept in {tmp_path}/metrics-{n}.jsonl.")
        assert not path.exists()
        assert (tmp_path / f"metrics-{n}.jsonl").read_text() == written
    assert len((tmp_path / "metrics-1.jsonl").read_text().splitlines()) == 3


def test_rows_with_much_padding_are_told() -> None:
    row = dict.fromkeys(("loss", "grad_norm", "lr", "tokens_per_second", "memory_gb"), 1.0) | {"step": 1}
    assert "fill 80%" in progress_line(row | {"fill": 0.8}, 2, 1.0)
    assert "fill" not in progress_line(row | {"fill": 0.96}, 2, 1.0) + progress_line(row, 2, 1.0)
