"""A run comes back or says why not: numbers that are not finite, signals, damaged checkpoints, two runs in a place."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decide import decide
from ranks import Run
from request import Config
from resume import choose_checkpoint
from training import SMALL, train
from trouble import train_with

from omni_ckpt import Fault, latest, read_plain, save_dcp, step_dir, step_of, steps
from omni_mesh import MeshConfig, World


def config_in(out: Path, **changes: object) -> Config:
    return replace(SMALL, out=out, mesh=MeshConfig(shard=2), steps=6, **changes)  # pyright: ignore[reportArgumentType]


def numbers(rows: list[dict[str, float]]) -> list[list[float]]:
    return [[row[name] for name in ("step", "loss", "grad_norm", "lr")] for row in rows]


def saved(out: Path) -> list[int]:
    return [step_of(path) for path in steps(out)]


@pytest.mark.parametrize("what", ["nan", "inf"])
def test_a_gradient_of_one_rank_that_is_not_finite_changes_nothing_on_any(what: str, run: Run, tmp_path: Path) -> None:
    config = config_in(tmp_path / "run", save_every=1, keep=9)
    results = run(train_with, 2, config, {3: (1, what)})
    assert [result["alike"] for result in results] == [[3], [3]]
    rows = results[0]["rows"]
    assert [row["step"] for row in rows] == [1, 2, 4, 5, 6]
    assert [row["lr"] for row in rows] == [decide(config, 2).schedule(row["step"] - 1) for row in rows]
    assert saved(config.out) == [1, 2, 4, 5, 6], "a state is saved once a step with it was finite"
    (told,) = (json.loads(line) for line in (config.out / "skipped.jsonl").read_text().splitlines())
    assert (told["step"], told["grad_norm"], told["cursor"]["rows"]) == (3, what, 36)
    whole = run(train, 2, replace(config, out=tmp_path / "whole"))[0]
    assert numbers(rows)[:2] == numbers(whole)[:2]
    assert rows[2]["loss"] != whole[3]["loss"]


def test_so_many_skipped_steps_in_a_row_stop_the_run_and_are_not_saved(run: Run, tmp_path: Path) -> None:
    config = config_in(tmp_path / "run", save_every=1, keep=9, max_skips=2)
    with pytest.raises(AssertionError) as failed:
        run(train_with, 2, config, {2: (0, "nan"), 4: (1, "nan"), 5: (0, "nan")})
    for part in ("at step 5 grad_norm is nan", "2 steps in a row", "skipped.jsonl", "--stop-after 5"):
        assert part in str(failed.value)
    assert saved(config.out) == [1, 3]
    assert [row["step"] for row in run(train, 2, config)[0]] == [1, 3, 4, 5, 6], "and go on from there"


def test_a_run_that_ends_in_skipped_steps_fails_and_does_not_save_them(run: Run, tmp_path: Path) -> None:
    config = config_in(tmp_path / "run", save_every=4)
    with pytest.raises(AssertionError, match="the last 1 steps were skipped, and nothing of them is saved"):
        run(train_with, 2, config, {6: (0, "nan")})
    assert saved(config.out) == [4]


def test_a_signal_to_one_rank_is_heard_by_all(run: Run, tmp_path: Path) -> None:
    config = config_in(tmp_path / "run", keep=9)
    first = run(train_with, 2, config, {2: (1, "SIGUSR1"), 4: (1, "SIGTERM")})[0]["rows"]
    assert [row["step"] for row in first] == [1, 2, 3, 4]
    assert saved(config.out) == [2, 4]
    both = run(train, 2, config)[0]
    assert numbers(both) == numbers(run(train, 2, replace(config, out=tmp_path / "whole"))[0])


def test_who_leaves_before_the_last_step_ends_with_the_code_that_was_asked_for(run: Run, tmp_path: Path) -> None:
    config = config_in(tmp_path / "run", leave_code=85)
    with pytest.raises(AssertionError, match="SystemExit: 85"):
        run(train_with, 2, config, {2: (1, "SIGTERM")})
    assert saved(config.out) == [2]
    run(train_with, 2, config, {6: (1, "SIGTERM")})
    assert saved(config.out) == [2, 6], "with 0 after the last"


def test_who_is_to_leave_while_steps_are_skipped_leaves_after_one_that_is_saved(run: Run, tmp_path: Path) -> None:
    config = config_in(tmp_path / "run")
    run(train_with, 2, config, {3: (0, "nan"), 2: (1, "SIGTERM")})
    assert saved(config.out) == [2]
    run(train_with, 2, replace(config, out=tmp_path / "other"), {3: (0, "nan"), 4: (1, "SIGTERM")})
    assert saved(tmp_path / "other") == [4]


@pytest.mark.parametrize("background", [True, False])
def test_a_damaged_checkpoint_is_set_aside_and_the_run_goes_on_from_the_one_before(
    background: bool, run: Run, tmp_path: Path
) -> None:
    config = config_in(tmp_path / "run", save_every=2, keep=9, save_in_background=background)
    run(train, 2, replace(config, stop_after=4))
    Fault("published", 0, "flip")("published", steps(config.out)[-1])
    assert decide(config, 2).found == steps(config.out)[-1], "sizes do not tell"
    both = run(train, 2, config)[0]
    assert numbers(both) == numbers(run(train, 2, replace(config, out=tmp_path / "whole"))[0])
    assert [path.name for path in config.out.glob("*.damaged")] == ["step-00000004.damaged"]
    assert saved(config.out) == [2, 4, 6]


def test_damage_is_told_in_whole_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (2, 4):
        save_dcp({"w": torch.ones(1)}, step_dir(tmp_path, step))
    (step_dir(tmp_path, 4) / "MANIFEST.json").unlink()
    assert choose_checkpoint(tmp_path, World(0, 0, 1, torch.device("cpu"))) == step_dir(tmp_path, 2)
    told = capsys.readouterr().out
    assert f"it has no MANIFEST.json. It is kept as {step_dir(tmp_path, 4)}.damaged.\n" in told
    assert ".." not in told


def test_a_run_without_a_whole_checkpoint_is_refused_with_every_reason(run: Run, tmp_path: Path) -> None:
    config = config_in(tmp_path / "run", save_every=2, keep=9)
    run(train, 2, replace(config, stop_after=4))
    first, second = steps(config.out)
    (first / "MANIFEST.json").unlink()
    Fault("published", 0, "flip")("published", second)
    with pytest.raises(AssertionError) as told:
        run(train, 2, config)
    for part in ("is whole, so nothing can go on from it", "it has no MANIFEST.json", "holds other bytes"):
        assert part in str(told.value)
    (second / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint of (.|\n)*has 0 of \d+ bytes(.|\n)*has no MANIFEST\.json"):
        decide(config, 2)
    assert saved(config.out) == [2, 4], "nothing is renamed or deleted"


@pytest.mark.parametrize("url", ["", "file://"])
def test_a_place_where_all_were_set_aside_as_damaged_is_no_place_to_start_anew(url: str, tmp_path: Path) -> None:
    config = config_in(tmp_path / "run", save_to=f"{url}{tmp_path}/kept")
    decide(config, 2)
    (tmp_path / "kept" / "step-00000004.damaged").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"nothing but step-00000004\.damaged(.|\n)*start anew in another directory"):
        decide(config, 2)


def test_a_checkpoint_says_what_a_person_wants_to_know_and_no_secret(run: Run, tmp_path: Path) -> None:
    config = replace(config_in(tmp_path / "run"), steps=2, data=("builtin",))
    rows = run(train, 2, config)[0]
    found = latest(config.out)
    assert found is not None
    about = read_plain(found)["about"]
    assert about["tokens"] == rows[-1]["tokens"]
    assert about["metrics"]["loss"] == rows[-1]["loss"]
    assert about["best"] == {"loss": min(row["loss"] for row in rows), "step": 2}
    assert (about["mesh"]["shard"], about["config"]["seq_len"]) == (2, 64)


def test_two_runs_in_one_directory_are_refused(run: Run, tmp_path: Path) -> None:
    from omni_ckpt import claim

    config = config_in(tmp_path / "run")
    with claim(config.out), pytest.raises(AssertionError, match="two runs in one directory"):
        run(train, 2, config)
    assert saved(config.out) == []
