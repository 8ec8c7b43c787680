"""Laws of who writes the checkpoints of a run: nothing that fails stays unseen, nothing under way is lost, and nothing
is held twice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from keeping import (
    count_what_is_held,
    fail_to_save,
    leave_while_saving,
    lose_the_place,
    train_and_tell,
    train_in_storage,
)
from ranks import Run
from storage import add_storage
from training import SMALL, train

from omni_ckpt import Fault, as_place, claim, step_of, steps
from omni_mesh import MeshConfig

BACKGROUND = replace(SMALL, steps=6, save_every=2, save_in_background=True)


def test_a_write_in_the_background_that_fails_surfaces_by_the_next_step(run: Run, tmp_path: Path) -> None:
    told, begun = run(fail_to_save, 1, replace(BACKGROUND, out=tmp_path / "run"))[0]
    assert "cannot save" in told and "No space left on device" in told
    assert "No checkpoint was complete yet: the next run starts anew." in told
    assert begun == 3, "the save is of step 2, and step 3 is the next"


@pytest.mark.parametrize("fails_at", [None, 2])
def test_leaving_waits_for_the_save_under_way_and_commits_it(fails_at: int | None, run: Run, tmp_path: Path) -> None:
    config = replace(BACKGROUND, out=tmp_path / "run", stop_after=None if fails_at else 2)
    end, newest, saving = run(leave_while_saving, 1, config, fails_at)[0]
    assert (end, newest, saving) == ("of the step" if fails_at else "well", "step-00000002", [])


@pytest.mark.thorough
def test_twenty_saves_in_the_background_leak_nothing(run: Run, tmp_path: Path) -> None:
    config = replace(BACKGROUND, out=tmp_path / "run", mesh=MeshConfig(shard=2), steps=24, save_every=1)
    for held in run(count_what_is_held, 2, config):
        assert held[23] == held[3]


@pytest.mark.parametrize("background", [True, False])
def test_a_prune_that_fails_is_told_each_time_and_the_run_goes_on(background: bool, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run" / "hf_hunter2hunter2"
    config = replace(SMALL, out=out, steps=5, save_every=1, keep=1, save_in_background=background)
    rows, told = run(train_and_tell, 1, config, Fault("pruned", 0, "broken"))[0]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    lines = [line for line in told.splitlines() if line.startswith("NOT PRUNED: ")]
    assert len(lines) == 4
    for step, line in enumerate(lines, 2):
        assert f"step-{step:08d} is saved, and the run goes on" in line and "Input/output error" in line
    assert "hunter2" not in told, "a path may have a secret"
    assert [step_of(path) for path in steps(config.out)] == [5]


@pytest.mark.parametrize("kind", ["shelf://", "file://", ""])
def test_two_runs_with_one_place_to_save_to_are_refused(kind: str, run: Run, tmp_path: Path) -> None:
    add_storage()
    place = f"{kind}{tmp_path}/storage"
    config = replace(SMALL, steps=2, out=tmp_path / "run", save_to=place)
    with claim(as_place(place)), pytest.raises(AssertionError, match=r"--save-to .*two runs in one directory"):
        run(train_in_storage, 1, config)
    assert steps(as_place(place)) == ()
    with claim(tmp_path / "run"), pytest.raises(AssertionError, match=r"--out .*two runs in one directory"):
        run(train_in_storage, 1, config)
    run(train_in_storage, 1, config)
    assert len(steps(as_place(place))) == 1


def test_one_place_named_twice_is_claimed_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    run(train, 1, replace(SMALL, steps=2, out=tmp_path / "run", save_to=str(tmp_path / "link")))
    assert len(steps(tmp_path / "run")) == 1


def test_what_killed_saves_left_is_gone_before_the_next_save(run: Run, tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path / "run", steps=4, stop_after=2, keep=1)
    run(train, 1, config)
    for name in ("step-00000003.tmp", "step-00000001.gone"):
        (config.out / name).mkdir()
        (config.out / name / "shard").write_bytes(b"half of it")
    run(train, 1, replace(config, stop_after=3, save_every=9))
    assert [path.name for path in steps(config.out)] == ["step-00000003"]
    assert not [path for path in config.out.glob("step-*") if path.suffix]
    kept = [*steps(config.out)]
    (config.out / "step-00000009.tmp").mkdir()
    run(train, 1, replace(config, stop_after=3))  # Which has nothing left to do, and saves nothing.
    assert [*config.out.glob("step-*")] == kept


def test_a_run_whose_place_another_took_saves_nothing_more(run: Run, tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path / "run", steps=4, save_every=1)
    with pytest.raises(AssertionError, match="--save-to it is lost"):
        run(lose_the_place, 1, config, 2)
    assert [step_of(path) for path in steps(config.out)] == [1, 2]


@pytest.mark.parametrize("save_every", [2, 9])
def test_an_error_that_ends_a_run_tells_what_there_is_to_go_on_from(save_every: int, run: Run, tmp_path: Path) -> None:
    # Of more than 1,000 documents only some are looked at before anything starts.
    texts = [[1, 999 if i % 50 == 7 else 2] * 30 for i in range(1100)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    how = {"data": (str(tmp_path / "d.jsonl"),), "mesh": MeshConfig(shard=2), "save_every": save_every, "max_bad": 1}
    with pytest.raises(AssertionError, match="cannot be used, of max_bad=1") as ended:
        run(train, 2, replace(SMALL, out=tmp_path / "run", save_in_background=True, **how))
    left = "No checkpoint was complete yet: the next run starts anew."
    if found := steps(tmp_path / "run"):
        left = f"{found[-1]} stands: the next run goes on from it, and takes the steps since then again."
    assert bool(found) == (save_every == 2)
    assert f"{left} --save-every, now {save_every}, saves more often." in str(ended.value)
