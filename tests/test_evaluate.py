"""What is held out is measured exactly, on any mesh, and training does not notice."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decide import decide
from ranks import Run
from request import Config, EvalConfig, MixConfig
from test_data import write
from training import SMALL, token_losses, train, write_family
from transformers import AutoModelForCausalLM

from omni_ckpt import read_plain, step_dir, steps
from omni_data import Packing
from omni_mesh import MeshConfig
from omni_models import build_model, read_config
from omni_parallel import AdamWConfig

FACTS = ("step", "loss", "grad_norm", "targets")


def config_in(folder: Path, **changes: object) -> Config:
    """Four steps, the first and the last two evaluated on documents of two sources, some longer than a row."""
    long = folder / "long.jsonl"
    long.write_text("".join(json.dumps({"text": "all of it and more " * (1 + i)}) + "\n" for i in range(9)))
    held_out = EvalConfig(data=(write(folder / "held.jsonl", 40, start=3), str(long)), every=3)
    return replace(SMALL, steps=4, micro=3, tokenizer="bytes", eval=held_out, out=folder / "run", **changes)


def evaluations(config: Config) -> list[dict[str, float]]:
    return [json.loads(line) for line in (config.out / "eval.jsonl").read_text().splitlines()]


def plain_loss(config: Config) -> tuple[dict[str, float], int]:
    """The losses of what is held out by plain transformers at the first weights, each part of a row by itself."""
    ours = build_model(read_config(config.model), seed=config.seed)
    model = AutoModelForCausalLM.from_config(ours.config, dtype=torch.float32, attn_implementation="eager").eval()
    model.load_state_dict(ours.state_dict())
    losses: dict[str, list[float]] = {}
    for path in config.eval.data:
        losses[path] = []
        for line in Path(path).read_text().splitlines():
            tokens = [*json.loads(line)["text"].encode(), 256]
            for start in range(0, len(tokens), config.seq_len):
                with torch.no_grad():
                    losses[path] += token_losses(model, tokens[start : start + config.seq_len]).tolist()
    every = [loss for each in losses.values() for loss in each]
    means = {f"loss/{Path(path).stem}": sum(each) / len(each) for path, each in losses.items()}
    return {"loss": sum(every) / len(every), **means}, len(every)


@pytest.mark.parametrize("family", ["tiny", "qwen3_moe"])
def test_it_is_the_loss_of_plain_transformers_on_every_mesh(family: str, run: Run, tmp_path: Path) -> None:
    still = config_in(tmp_path, model=write_family(family, tmp_path), optim=AdamWConfig(lr=1e-12))
    expected, targets = plain_loss(still)
    meshes = [MeshConfig(shard=1), MeshConfig(shard=2), MeshConfig(shard=1, sp=2), MeshConfig(replicate=2, shard=2)]
    meshes += [MeshConfig(shard=2, ep=2)] if family == "qwen3_moe" else []
    for mesh in meshes:
        ranks = mesh.replicate * mesh.shard * mesh.sp
        config = replace(still, mesh=mesh, out=tmp_path / str(mesh))
        run(train, ranks, config)
        for row in evaluations(config):
            found: Mapping[str, float] = {name: row[name] for name in expected}
            assert found == pytest.approx(expected, rel=1e-5)
            assert row["targets"] == targets
        assert [row["step"] for row in evaluations(config)] == [3, 4]


@pytest.mark.parametrize("mesh", [MeshConfig(shard=1), MeshConfig(shard=2), MeshConfig(shard=1, sp=2)])
def test_training_does_not_notice(mesh: MeshConfig, run: Run, tmp_path: Path) -> None:
    folder = Path(write_family("llama", tmp_path))
    plain = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(plain | {"attention_dropout": 0.5}))
    # Dropout draws: nothing but an unchanged generator gives these numbers.
    config = config_in(tmp_path, model=str(folder), mesh=mesh, attention="eager", save_every=3)
    ranks = mesh.shard * mesh.sp
    rows = run(train, ranks, config)[0]
    without = run(train, ranks, replace(config, eval=EvalConfig(), out=tmp_path / "without"))[0]
    assert [[row[name] for name in FACTS] for row in rows] == [[row[name] for name in FACTS] for row in without]
    for step in (3, 4):
        one, other = (
            {p.name: p.read_bytes() for p in step_dir(out, step).glob("*.distcp")}
            for out in (config.out, tmp_path / "without")
        )
        assert one and one == other


def test_the_best_checkpoint_is_by_what_is_held_out(run: Run, tmp_path: Path) -> None:
    # A rate that is far too high makes the loss worse with each step.
    config = config_in(tmp_path, optim=AdamWConfig(lr=0.5), warmup=0, save_every=1, keep=1, keep_best=1)
    config = replace(config, eval=replace(config.eval, every=2, documents=5), steps=5)
    run(train, 1, config)
    found = {row["step"]: row["loss"] for row in evaluations(config)}
    assert list(found) == [2, 4, 5]
    best = min(found, key=found.__getitem__)
    assert [path.name for path in steps(config.out)] == [step_dir(config.out, s).name for s in sorted({best, 5})]
    assert read_plain(step_dir(config.out, 5))["about"]["metrics"]["eval_loss"] == found[5]
    assert read_plain(step_dir(config.out, 5))["about"]["best"] == {"loss": found[best], "step": best}


def test_a_run_that_ends_with_its_data_is_evaluated_at_its_end(run: Run, tmp_path: Path) -> None:
    config = config_in(
        tmp_path, mix=MixConfig(epochs=(1,)), data=(write(tmp_path / "web.jsonl", 60),), mesh=MeshConfig(shard=2)
    )
    rows = run(train, 2, replace(config, steps=1000, packing=Packing("fit"), eval=replace(config.eval, every=1000)))[0]
    (last,) = evaluations(config)
    assert rows[-1]["step"] <= last["step"] <= rows[-1]["step"] + 2


def test_it_is_written_again_after_a_resume_and_once(run: Run, tmp_path: Path) -> None:
    config = config_in(tmp_path)
    config = replace(config, eval=replace(config.eval, every=1), save_every=2)
    run(train, 1, config)
    whole = evaluations(config)
    split = replace(config, out=tmp_path / "split")
    run(train, 1, replace(split, stop_after=2))
    run(train, 1, split)
    assert evaluations(split) == whole


def test_what_is_wrong_with_it_is_told_with_everything_else(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    wrong = EvalConfig(data=("nowhere.jsonl",), every=0, documents=0)
    with pytest.raises(ValueError) as caught:
        decide(replace(config, eval=wrong, steps=0), 1)
    told = str(caught.value)
    for part in (
        "eval.data: nowhere.jsonl: no such file",
        "--eval.every 0 must be",
        "--eval.documents 0 must be",
        "--steps 0 must be",
    ):
        assert part in told
