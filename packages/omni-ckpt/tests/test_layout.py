from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_ckpt.layout import damaged, deleting, latest, leftovers, step_dir, step_of, steps, writing


def make(root: Path, *numbers: int) -> list[Path]:
    paths = [step_dir(root, number) for number in numbers]
    for path in paths:
        path.mkdir(parents=True)
    return paths


@settings(deadline=None)
@given(st.integers(0, 10**12))
def test_step_of_inverts_step_dir(step):
    assert step_of(step_dir(Path("run"), step)) == step


@pytest.mark.parametrize(
    "name", ["step-10", "step-00000010.tmp", "step-0000001a", "step_00000010", "step-²²²²²²²²", "x"]
)
def test_other_names_are_not_steps(name, tmp_path):
    (tmp_path / name).mkdir()
    assert steps(tmp_path) == ()
    with pytest.raises(ValueError, match="not named like a checkpoint"):
        step_of(tmp_path / name)


def test_a_step_is_not_negative():
    with pytest.raises(ValueError, match="step=-1"):
        step_dir(Path("run"), -1)


def test_steps_are_in_order_of_number_not_of_name(tmp_path):
    old, new = make(tmp_path, 99_999_999, 100_000_000)
    assert steps(tmp_path) == (old, new)
    assert latest(tmp_path) == new


def test_the_latest_is_complete(tmp_path):
    (done,) = make(tmp_path, 10)
    writing(step_dir(tmp_path, 20)).mkdir()
    deleting(step_dir(tmp_path, 5)).mkdir()
    step_dir(tmp_path, 30).write_text("a file is no checkpoint")
    assert latest(tmp_path) == done


def test_nothing_is_the_latest_of_nothing(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "absent") is None
    assert steps(tmp_path / "absent") == ()


def test_only_what_cannot_be_in_progress_is_left_over(tmp_path):
    make(tmp_path, 2)
    dead, same, live = (writing(step_dir(tmp_path, step)) for step in (1, 2, 3))
    doomed = deleting(step_dir(tmp_path, 9))
    for path in (dead, same, live, doomed, tmp_path / "notes.tmp"):
        path.mkdir()
    assert leftovers(tmp_path) == [dead, same, doomed]


def test_what_is_damaged_is_no_step_and_takes_a_free_name(tmp_path):
    (one,) = make(tmp_path, 1)
    for suffix in (".damaged", ".damaged1"):
        aside = damaged(one)
        assert aside.name == one.name + suffix
        aside.mkdir()
    assert steps(tmp_path) == (one,)
