"""A rank that is frozen, wherever it is, ends the run within a bound: every other rank names it and leaves with 75."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from patience import MARGIN_S, START_S, expect_steps
from ranks import Run
from request import Config
from training import SMALL, train
from trouble import freeze, train_slowly_saving

from omni_ckpt import latest, step_of
from omni_mesh import STALLED, MeshConfig, Watchdog, World, join_world, make_mesh, resolve_mesh

BOUND_S = 30


def config_in(out: Path) -> Config:
    return replace(SMALL, out=out, mesh=MeshConfig(shard=2), steps=6, save_every=2, keep=1, save_in_background=False)


@pytest.mark.parametrize(
    ("where", "rank", "limits", "newest"),
    [
        ("load", 1, {"start_s": 8.0}, 2),
        ("3", 1, {}, 2),
        ("writing", 1, {"save_s": 4.0}, 2),
        ("pruned", 0, {"save_s": 4.0}, 4),
    ],
    ids=["loading", "before a step", "in a save", "in a prune, with the store of the world"],
)
def test_a_rank_that_is_frozen_is_named_and_ends_the_run(
    where: str, rank: int, limits: dict[str, float], newest: int, run: Run, tmp_path: Path
) -> None:
    config = replace(config_in(tmp_path / "run"), stop_after=2)
    run(train, 2, config)
    config = replace(config, stop_after=None, timeout_s=4.0)
    with pytest.raises(AssertionError, match=f"rank {1 - rank} of 2: the process died with code {STALLED}"):
        run(partial(freeze, **limits), 2, config, where, rank, tmp_path)
    assert time.time() - (tmp_path / "stopped").stat().st_mtime < BOUND_S
    told = (tmp_path / str(1 - rank)).read_text()
    assert f"To blame: rank {rank} of 2, which does not answer: it is stopped, dead or cut off." in told
    assert f"Rank {1 - rank} stands here:" in told
    found = latest(config.out)
    assert found is not None and step_of(found) == newest


@pytest.mark.parametrize(("save_every", "background"), [(3, False), (4, True)], ids=["by the step", "waited for"])
def test_a_save_may_take_longer_than_a_step(save_every: int, background: bool, run: Run, tmp_path: Path) -> None:
    config = replace(config_in(tmp_path / "run"), steps=4, save_every=save_every, timeout_s=2.0)
    config = replace(config, save_in_background=background)
    assert [row["step"] for row in run(train_slowly_saving, 2, config, 4.0)[0]] == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:.*barrier.*:UserWarning")
def test_the_first_step_has_the_time_of_the_start_and_the_second_that_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with join_world(device="cpu", timeout_s=START_S + MARGIN_S) as world:
        mesh = make_mesh(resolve_mesh(MeshConfig(), 1), device_type="cpu")
        groups = [dist.group.WORLD, *mesh.groups()]

        def waits() -> set[float]:
            return {group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups}

        dog = Watchdog(world, START_S)
        dog.last -= 100
        begin = expect_steps(dog, mesh, 5.0)
        assert not dog.is_late() and time.monotonic() - dog.last < 10, "loading does not count"
        for step, limit in ((7, START_S), (8, 5.0), (9, 5.0)):
            begin(step)
            assert (dog.step, dog.limit_s, waits()) == (step, limit, {limit + MARGIN_S})
        begin = expect_steps(dog, mesh, 3 * START_S)
        assert dog.limit_s == 3 * START_S, "who waits longer for a step waits as long for the first"


def test_silence_is_allowed_while_it_was_asked_for_and_counts_anew_after() -> None:
    dog = Watchdog(World(0, 0, 1, torch.device("cpu")), 0.1)
    with dog.allowing(60):
        time.sleep(0.2)
        assert not dog.is_late()
        with dog.allowing(1):
            assert dog.limit_s == 60, "the longer one holds"
    assert not dog.is_late()
    time.sleep(0.2)
    assert dog.is_late()
