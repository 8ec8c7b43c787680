import threading
import time

import pytest
import torch

from omni_ckpt import begin_save_dcp, load_dcp, make_staging, prune, read_plain, save_dcp, step_dir, steps
from omni_ckpt.faults import Fault


def tree(value: float = 1.0) -> dict:
    return {"w": torch.full((1000,), value), "step": 1, "list": [1, [2]]}


def test_what_changes_after_the_call_is_not_in_the_checkpoint(tmp_path):
    ours = tree()
    saving = begin_save_dcp(ours, tmp_path / "one", at=Fault("begun", 0, "slow"))
    ours["w"].zero_()
    ours["list"][1].append(3)
    ours["step"] = 2
    assert not saving.done
    path = saving()
    assert saving.done
    assert saving() == path
    assert read_plain(path) == {"step": 1, "list": [1, [2]]}
    assert load_dcp(tree(0.0), path)["w"].tolist() == [1.0] * 1000


def test_the_files_are_those_of_a_save_that_waits(tmp_path):
    paths = [save_dcp(tree(), tmp_path / "one"), begin_save_dcp(tree(), tmp_path / "two")()]
    shards = [(path / "__0_0.distcp").read_bytes() for path in paths]
    assert shards[0] == shards[1]


@pytest.mark.parametrize("point", ["staged", "begun", "writing", "written", "indexed", "sealed"])
def test_a_failure_is_raised_to_whoever_waits_and_nothing_is_published(point, tmp_path):
    saving = begin_save_dcp(tree(), tmp_path / "one", at=Fault(point, 0, "full"))
    until = time.monotonic() + 60
    while not saving.done and time.monotonic() < until:
        time.sleep(0.01)
    for _ in range(2):
        with pytest.raises(OSError, match=r"cannot save .*one: No space left on device"):
            saving()
    assert list(tmp_path.iterdir()) == []


def test_a_tree_that_cannot_be_stored_is_an_error_of_the_save(tmp_path):
    with pytest.raises(ValueError, match=r"cannot save (.|\n)*a set is not stored"):
        begin_save_dcp({"bad": {1}}, tmp_path / "one")()


def test_a_staging_in_use_is_refused_and_free_after_a_save_that_failed(tmp_path):
    staging = make_staging(tree())
    slow = begin_save_dcp(tree(), tmp_path / "one", staging=staging, at=Fault("begun", 0, "slow"))
    with pytest.raises(ValueError, match="a save that uses this staging is under way"):
        begin_save_dcp(tree(2.0), tmp_path / "two", staging=staging)()
    assert load_dcp(tree(0.0), slow())["w"].sum() == 1000
    with pytest.raises(OSError, match="Input/output error"):
        begin_save_dcp(tree(), tmp_path / "three", staging=staging, at=Fault("written", 0, "broken"))()
    assert begin_save_dcp(tree(), tmp_path / "four", staging=staging)().is_dir()


def test_what_comes_after_the_commit_is_done_in_the_same_go(tmp_path):
    for step in (1, 2, 3):
        save = begin_save_dcp(tree(), step_dir(tmp_path, step), then=lambda path: prune(path.parent, 1) and None)
        save()
    assert steps(tmp_path) == (step_dir(tmp_path, 3),)

    def fail(path):
        raise OSError(5, "no", str(path))

    with pytest.raises(OSError, match=r"cannot clear up after .*step-00000004: no"):
        begin_save_dcp(tree(), step_dir(tmp_path, 4), then=fail)()
    assert steps(tmp_path)[-1] == step_dir(tmp_path, 4)


def test_twenty_saves_leave_no_thread(tmp_path):
    before = threading.active_count()
    staging = make_staging(tree())
    for step in range(20):
        begin_save_dcp(tree(), step_dir(tmp_path, step), staging=staging)()
    assert threading.active_count() == before
