"""A run that stops and starts again is the run that never stopped: on the same mesh to the bit, on another to 1e-6."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pretrain
import pytest
import torch
from about import changed_settings, settle
from decide import decide
from keeping import train_and_look, train_in_storage
from ranks import Run
from redact import plain_values
from request import Config
from storage import add_storage
from training import SMALL, train, write_family

from omni_ckpt import read_plain, step_dir, stored
from omni_mesh import MeshConfig
from omni_models import BalanceConfig
from omni_parallel import AdamWConfig

EXACT = ("step", "loss", "grad_norm", "targets", "lr", "tokens")
HALF = {"stop_after": 5}


def numbers(rows: list[dict[str, float]]) -> list[list[float]]:
    return [[row[name] for name in EXACT] for row in rows]


@pytest.mark.parametrize(
    ("ranks", "mesh", "micro"),
    [
        (1, MeshConfig(), None),
        (2, MeshConfig(shard=2), 2),
        (4, MeshConfig(replicate=2, shard=2), None),
    ],
)
def test_a_run_stopped_after_step_5_prints_the_numbers_of_an_unbroken_one(
    ranks: int, mesh: MeshConfig, micro: int | None, run: Run, tmp_path: Path
) -> None:
    config = replace(SMALL, mesh=mesh, micro=micro, out=tmp_path / "whole")
    whole = run(train, ranks, config)[0]
    config = replace(config, out=tmp_path / "halves")
    first = run(train, ranks, replace(config, **HALF))[0]
    both = run(train, ranks, config)[0]
    assert numbers(first) == numbers(whole)[:5]
    assert numbers(both) == numbers(whole)


def test_checkpoints_may_be_in_storage_that_is_no_disk(run: Run, tmp_path: Path) -> None:
    config = replace(SMALL, mesh=MeshConfig(shard=2), steps=6, save_every=2, out=tmp_path / "run")
    config = replace(config, save_to=f"shelf://{tmp_path}/storage")
    run(train_in_storage, 2, replace(config, stop_after=4))
    both = run(train_in_storage, 2, config)[0]
    assert numbers(both) == numbers(run(train, 2, replace(config, save_to=None, out=tmp_path / "whole"))[0])
    add_storage()
    assert sorted(path.name for path in config.checkpoints().iterdir()) == ["step-00000004", "step-00000006"]
    assert not list(config.out.glob("step-*"))


def test_a_killed_run_writes_the_steps_after_its_checkpoint_again(run: Run, tmp_path: Path) -> None:
    config = replace(SMALL, save_every=4, stop_after=6, out=tmp_path / "run")
    run(train, 1, config)
    (config.out / "step-00000006").rename(tmp_path / "lost")
    again = run(train, 1, replace(config, stop_after=None))[0]
    whole = run(train, 1, replace(SMALL, out=tmp_path / "whole"))[0]
    assert numbers(again) == numbers(whole)


def test_a_run_that_draws_random_numbers_draws_those_of_an_unbroken_one(run: Run, tmp_path: Path) -> None:
    directory = Path(write_family("llama", tmp_path))
    plain = json.loads((directory / "config.json").read_text())
    config = replace(SMALL, model=str(directory), tokenizer="bytes", steps=6, mesh=MeshConfig(shard=2))
    without = run(train, 2, replace(config, out=tmp_path / "without"))[0]
    (directory / "config.json").write_text(json.dumps(plain | {"attention_dropout": 0.5}))
    whole = run(train, 2, replace(config, out=tmp_path / "whole"))[0]
    assert all(mine["loss"] != theirs["loss"] for mine, theirs in zip(without, whole, strict=True)), "nothing is drawn"
    config = replace(config, out=tmp_path / "parts")
    for stop in (1, 4, None):  # A run that goes on is itself gone on from.
        parts = run(train, 2, replace(config, stop_after=stop))[0]
    assert numbers(parts) == numbers(whole)
    other = run(train, 2, replace(config, out=tmp_path / "other", seed=1))[0]
    assert numbers(other) != numbers(whole)


@pytest.fixture(scope="module")
def halved(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, list[dict[str, float]]]:
    """A run that four ranks began and left half done, and the numbers of one rank that did all of it."""
    folder = tmp_path_factory.mktemp("halved")
    config = replace(SMALL, out=folder / "run", mesh=MeshConfig(replicate=2, shard=2))
    run(train, 4, replace(config, **HALF))
    return config, run(train, 1, replace(SMALL, out=folder / "whole"))[0]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_checkpoint_of_4_ranks_continues_on_fewer(
    ranks: int, halved: tuple[Config, list[dict[str, float]]], run: Run, tmp_path: Path
) -> None:
    config, whole = halved
    out = shutil.copytree(config.out, tmp_path / "run")
    ours = run(train, ranks, replace(config, out=out, mesh=MeshConfig(shard=ranks)))[0]
    assert [row["targets"] for row in ours] == [row["targets"] for row in whole]
    for mine, theirs in zip(ours, whole, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


def test_tied_weights_are_saved_once_and_stay_tied_from_mesh_to_mesh(run: Run, tmp_path: Path) -> None:
    model = write_family("qwen2", tmp_path)
    config = replace(SMALL, model=model, tokenizer="bytes", steps=6, out=tmp_path / "run")
    whole = run(train, 1, replace(config, out=tmp_path / "whole"))[0]
    rows: list[dict[str, float]] = []
    for ranks, stop in ((2, 2), (1, 4), (4, 6)):
        told = run(train_and_look, ranks, replace(config, mesh=MeshConfig(shard=ranks), stop_after=stop))
        assert [tied for _, tied in told] == [[True, True]] * ranks
        rows = told[0][0]
        names = stored(step_dir(config.out, stop), prefix="state.model")
        assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    for mine, theirs in zip(rows, whole, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


def test_balanced_experts_on_any_mesh_continue_on_any_other(run: Run, tmp_path: Path) -> None:
    """With both ways to balance at once: loss and biases are of all tokens, and biases are in the checkpoint."""
    config = replace(
        SMALL,
        model=write_family("deepseek_v3", tmp_path),
        tokenizer="bytes",
        balance=BalanceConfig(loss=0.1, rate=0.05),
        steps=6,
        out=tmp_path / "run",
    )
    whole = run(train, 1, replace(config, out=tmp_path / "whole"))[0]
    run(train, 4, replace(config, mesh=MeshConfig(shard=2, sp=2, ep=4), stop_after=3))
    ours = run(train, 2, replace(config, mesh=MeshConfig(shard=2, ep=2)))[0]
    for mine, theirs in zip(ours, whole, strict=True):
        for name in ("loss", "balance_loss", "grad_norm"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5)
        assert mine["expert_load"] == theirs["expert_load"]
        assert mine["expert_load_max"] == theirs["expert_load_max"] >= 1
    assert whole[-1]["expert_load"] != whole[0]["expert_load"]


def test_a_checkpoint_keeps_its_batch_and_refuses_other_data(run: Run, tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path / "run", batch=6, steps=4, stop_after=2, mesh=MeshConfig(shard=2))
    run(train, 2, config)
    left_out = replace(config, batch=None, mesh=MeshConfig(shard=1))
    assert decide(left_out, 1).batch == 6
    (tmp_path / "other.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError) as told:
        decide(replace(left_out, data=(str(tmp_path / "other.txt"),), seed=3, virtual_shards=480), 1)
    other = "stands at a place in other data (--data builtin, now "
    for part in (other, "(--seed 0, now 3)", "the checkpoint has 12: leave it out"):
        assert part in str(told.value)


def test_a_line_of_metrics_that_a_kill_cut_short_is_dropped(run: Run, tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path / "run", steps=4, stop_after=2)
    run(train, 1, config)
    with (config.out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "los')
    assert [row["step"] for row in run(train, 1, replace(config, stop_after=None))[0]] == [1, 2, 3, 4]


def test_a_step_without_a_finite_loss_is_not_saved(run: Run, tmp_path: Path) -> None:
    wild = AdamWConfig(lr=1e30, max_norm=float("inf"))
    config = replace(SMALL, out=tmp_path / "run", steps=4, save_every=1, optim=wild)
    with pytest.raises(
        AssertionError, match=r"after step 1 the values of .* are not finite, or so large that their sq"
    ):
        run(train, 1, config)
    assert not list(config.out.glob("step-*"))
    with pytest.raises(AssertionError, match=r"at step 4 .*(loss|grad_norm) is (nan|inf)"):
        run(train, 1, replace(config, save_every=9, out=tmp_path / "other"))
    assert not list((tmp_path / "other").glob("step-*"))


def test_a_checkpoint_that_no_step_was_finite_after_is_told(run: Run, tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path / "run", steps=6, stop_after=2, save_every=1)
    run(train, 1, config)
    wild = replace(config, stop_after=3, optim=AdamWConfig(lr=1e15, max_norm=float("inf")))
    run(train, 1, wild)
    with pytest.raises(
        AssertionError, match=r"step-00000003 stands. No step since it was finite, .* delete it to go on"
    ):
        run(train, 1, replace(config, stop_after=None))


def test_a_finished_run_started_again_changes_nothing(run: Run, tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path / "run", steps=3)
    first = run(train, 1, config)[0]
    files = sorted(path.name for path in config.out.iterdir())
    assert run(train, 1, config)[0] == first
    assert sorted(path.name for path in config.out.iterdir()) == files


def test_old_checkpoints_are_pruned(run: Run, tmp_path: Path) -> None:
    run(train, 2, replace(SMALL, out=tmp_path / "run", mesh=MeshConfig(shard=2), save_every=2, keep=2))
    kept = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
    assert kept == ["step-00000008", "step-00000010"]


def test_the_newest_those_of_some_steps_and_the_best_are_kept_as_asked(run: Run, tmp_path: Path) -> None:
    # So low a learning rate that the loss is that of the rows, and of the checkpoints least at step 4.
    still = AdamWConfig(lr=1e-7)
    config = replace(SMALL, seed=5, steps=8, optim=still, save_every=2, keep=1, keep_every=6, keep_best=1)
    rows = run(train, 1, replace(config, out=tmp_path / "run"))[0]
    losses = {row["step"]: row["loss"] for row in rows if row["step"] % 2 == 0}
    assert min(losses, key=losses.__getitem__) == 4
    kept = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
    assert kept == ["step-00000004", "step-00000006", "step-00000008"]


def test_settings_are_those_of_the_command_line_and_moments_those_of_the_checkpoint(run: Run, tmp_path: Path) -> None:
    """What a checkpoint has of settings is told, and not used."""
    config = replace(SMALL, steps=6, out=tmp_path / "run")
    first = run(train, 1, replace(config, stop_after=3))[0]
    about = read_plain(config.out / "step-00000003")["about"]
    assert not changed_settings(about, config, settle(config, decide(config, 1)))
    whole = run(train, 1, replace(config, out=tmp_path / "whole"))[0]
    others = {"lr": {"lr": 3e-3}, "betas": {"betas": (0.5, 0.6)}, "decay": {"weight_decay": 5.0}, "eps": {"eps": 1e-3}}
    for name, changes in others.items():
        shutil.copytree(config.out, tmp_path / name)
        asked = replace(config, out=tmp_path / name, optim=replace(config.optim, **changes))
        rows = run(train, 1, asked)[0]
        assert numbers(rows)[:3] == numbers(first)
        assert rows[3]["loss"] == whole[3]["loss"], "the state is that of the checkpoint"
        assert rows[4]["loss"] != whole[4]["loss"], f"{name} is as asked for now"
        assert [row["lr"] for row in rows[3:]] == [decide(asked, 1).schedule(step) for step in (3, 4, 5)]


def test_moments_in_bfloat16_are_saved_so_and_go_on_to_the_bit(run: Run, tmp_path: Path) -> None:
    config = replace(SMALL, mesh=MeshConfig(shard=2), optim=AdamWConfig(state_dtype="bfloat16"), out=tmp_path / "run")
    first = run(train, 2, replace(config, **HALF))[0]
    kept = stored(step_dir(config.out, 5), prefix="state.optimizer")
    assert {spec.dtype for name, spec in kept.items() if name.startswith("exp_avg")} == {torch.bfloat16}
    both = run(train, 2, config)[0]
    whole = run(train, 2, replace(config, out=tmp_path / "whole"))[0]
    assert (numbers(first), numbers(both)) == (numbers(whole)[:5], numbers(whole))
    wide = run(train, 2, replace(config, optim=AdamWConfig(), out=tmp_path / "wide"))[0]
    assert numbers(wide) != numbers(whole)
    for mine, theirs in zip(whole, wide, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


@pytest.mark.parametrize(("before", "after"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_run_may_go_on_with_moments_of_another_width_which_is_told(
    run: Run, tmp_path: Path, before: Any, after: Any
) -> None:
    config = replace(SMALL, steps=6, optim=AdamWConfig(state_dtype=before), out=tmp_path / "run")
    first = run(train, 1, replace(config, stop_after=3))[0]
    asked = replace(config, optim=AdamWConfig(state_dtype=after))
    about = read_plain(step_dir(config.out, 3))["about"]
    told = changed_settings(about, asked, settle(asked, decide(asked, 1)))
    assert told == [f"--optim.state-dtype {before} -> {after}"]
    rows = run(train, 1, asked)[0]
    assert numbers(rows)[:3] == numbers(first)
    whole = run(train, 1, replace(config, out=tmp_path / "whole"))[0]
    assert rows[3]["loss"] == whole[3]["loss"], "parameters are those of the checkpoint"
    assert rows[5]["loss"] == pytest.approx(whole[5]["loss"], rel=1e-3), "and so are moments, nearly"
    kept = stored(step_dir(config.out, 6), prefix="state.optimizer")
    assert {str(spec.dtype) for name, spec in kept.items() if name.startswith("exp_avg")} == {f"torch.{after}"}


def test_every_setting_that_is_not_that_of_the_checkpoint_is_told() -> None:
    about = {"config": plain_values(asdict(SMALL))}
    asked = replace(
        SMALL,
        **{"optim": AdamWConfig(lr=5e-4, betas=(0.8, 0.95), offload=True), "steps": 20, "warmup": 3},
        **{"dtype": "bfloat16", "tile_mlp": 50, "timeout_s": 3.0},
        **{"balance": BalanceConfig(rate=0.1), "out": Path("elsewhere"), "save_every": 7},
        mesh=MeshConfig(shard=2),
    )
    assert changed_settings(about, asked, {"warmup": 3, "dtype": "bfloat16"}) == [
        "--steps 10 -> 20",
        "--warmup left out -> 3",
        "--dtype float32 -> bfloat16",
        "--balance.rate 0.0 -> 0.1",
        "--optim.lr 0.001 -> 0.0005",
        "--optim.betas 0.9 0.95 -> 0.8 0.95",
    ]
    assert changed_settings({}, asked, {}) == [], "a checkpoint that says nothing of its run"
    narrow = replace(SMALL, linear="fp8")
    about = {"config": plain_values(asdict(narrow))}
    others = replace(narrow, micro=3, mesh=MeshConfig(shard=2), sp_chunks=2, tile_mlp=50)
    assert changed_settings(about, others, {}) == ["--micro left out -> 3", "--shard 1 -> 2", "--tile-mlp 0 -> 50"]


def test_what_is_left_open_is_compared_as_it_was_decided(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(SMALL, dtype="auto", batch=None, steps=20, stop_after=2, out=tmp_path / "run", workers=0)
    run(train, 1, config)
    about = read_plain(config.out / "step-00000002")["about"]

    def changes(**others: Any) -> list[str]:
        asked = replace(config, **others)
        return changed_settings(about, asked, settle(asked, decide(asked, 1)))

    assert changes(dtype="float32" if not torch.cuda.is_available() else "bfloat16", batch=12, warmup=2) == []
    assert changes(seq_len=32, batch=24) == ["--batch 12 -> 24", "--seq-len 64 -> 32"]
    assert changes(workers=1, timeout_s=9.0, save_every=3, mesh=MeshConfig(), field="text") == []
    assert changes(model="tiny", loss="full", steps=40) == [
        "--steps 20 -> 40",
        "--warmup 2 -> 4",
        "--loss auto -> full",
    ]
    pretrain.main(replace(config, stop_after=3, seq_len=32, optim=AdamWConfig(lr=2e-3)))
    assert "\nchanged   --seq-len 64 -> 32, --optim.lr 0.001 -> 0.002\n" in capsys.readouterr().out
