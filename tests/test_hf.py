"""In from Hugging Face and out to it: the numbers, the names and the files that plain transformers has."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import infer
import merge
import pytest
import torch
from decide import decide
from ranks import Run
from safetensors import safe_open
from training import SMALL, stream_of, token_losses, train, write_family
from transformers import AutoModelForCausalLM, AutoTokenizer

from omni_ckpt import load_dcp, step_dir, stored
from omni_data import unpack_batch
from omni_mesh import MeshConfig
from omni_models import build_model, read_config
from omni_parallel import AdamWConfig

TWO = MeshConfig(shard=2)
FAMILIES = ["tiny", "llama", "qwen2", "gemma2", "qwen3_moe"]


@pytest.mark.parametrize("family", FAMILIES)
def test_step_0_from_a_directory_has_the_loss_of_plain_transformers(family: str, run: Run, tmp_path: Path) -> None:
    made = build_model(read_config(write_family(family, tmp_path)), seed=11)
    with torch.no_grad():
        for param in made.parameters():
            param.mul_(3.0)  # So that the model does not guess evenly, whatever its weights.
    made.save_pretrained(tmp_path / "hf", max_shard_size="100KB")
    assert (tmp_path / "hf" / "model.safetensors.index.json").is_file()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32, attn_implementation="eager")
    hf = str(tmp_path / "hf")
    mesh = replace(TWO, ep=2) if "moe" in family else TWO
    config = replace(SMALL, model=hf, weights=hf, tokenizer="bytes", steps=1, mesh=mesh, out=tmp_path / "run")
    ours = run(train, 2, config)[0][0]
    what = decide(replace(config, mesh=MeshConfig()), 1)
    batch, _ = next(stream_of(what, config))
    with torch.no_grad():
        losses = torch.cat([token_losses(plain, document) for row in unpack_batch(batch) for document in row])
    assert ours["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert abs(ours["loss"] - math.log(272)) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_run_loads_in_plain_transformers_and_generates(
    family: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_family(family, tmp_path)
    mesh = replace(TWO, ep=2) if "moe" in family else TWO
    config = replace(SMALL, model=model, tokenizer="bytes", steps=3, mesh=mesh, out=tmp_path / "run")
    run(train, 2, config)
    merge.main(merge.Config(run=config.out, to=tmp_path / "merged"))
    plain, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert plain.dtype == torch.float32
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"] == [type(plain).__name__]

    ours = build_model(read_config(model))
    tree = {name: param for name, param in ours.named_parameters()}
    loaded = load_dcp({"state": {"model": tree}}, step_dir(config.out, 3), strict=False)
    assert set(loaded["state"]["model"]) == set(stored(step_dir(config.out, 3), prefix="state.model"))
    ids = torch.arange(40)[None]
    ours.set_attn_implementation("eager")
    ours.set_experts_implementation(plain.config._experts_implementation)
    with torch.no_grad():
        assert torch.equal(ours.eval()(input_ids=ids).logits, plain.eval()(input_ids=ids).logits)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer("héllo")["input_ids"] == list("héllo".encode())
    capsys.readouterr()
    infer.main(infer.Config(model=str(tmp_path / "merged"), prompt="The quick", tokens=5))
    assert capsys.readouterr().out.startswith("The quick")


def test_a_run_from_a_directory_without_training_is_that_directory_again_byte_for_byte(
    run: Run, tmp_path: Path
) -> None:
    made = build_model(read_config(write_family("qwen3_moe", tmp_path)), seed=11)
    made.save_pretrained(tmp_path / "hf")
    hf, still = str(tmp_path / "hf"), AdamWConfig(lr=0.0)
    config = replace(SMALL, model=hf, weights=hf, tokenizer="bytes", steps=1, optim=still, out=tmp_path / "run")
    run(train, 4, replace(config, mesh=MeshConfig(shard=4, ep=2)))
    merge.main(merge.Config(run=tmp_path / "run", to=tmp_path / "merged"))
    theirs, ours = (
        {path.name: path.read_bytes() for path in (tmp_path / at).glob("model*")} for at in ("hf", "merged")
    )
    assert [*ours] == [*theirs] == ["model.safetensors"]
    assert b"experts.3.up_proj.weight" in ours["model.safetensors"]
    assert ours == theirs


def test_a_merge_casts_when_asked_and_writes_shards_of_a_bounded_size(run: Run, tmp_path: Path) -> None:
    run(train, 1, replace(SMALL, steps=1, out=tmp_path / "run"))
    merge.main(merge.Config(run=tmp_path / "run", to=tmp_path / "merged", step=1, dtype="bfloat16"))
    with safe_open(tmp_path / "merged" / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16


def test_killed_anywhere_a_merge_leaves_no_configuration_before_all_else_is_there(run: Run, tmp_path: Path) -> None:
    """A kill leaves what is there before the next line: it is looked at before each."""
    run(train, 1, replace(SMALL, steps=1, out=tmp_path / "run"))
    to, found = tmp_path / "merged", list[dict[str, bytes]]()

    def look() -> None:
        found.append({file.name: file.read_bytes() for file in to.iterdir()})

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename != merge.__file__:
            return None
        if event == "line" and to.is_dir():
            look()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        merge.main(merge.Config(run=tmp_path / "run", to=to, dtype="bfloat16"))
    finally:
        sys.settrace(before)
    look()
    assert json.loads(found[-1]["config.json"])["dtype"] == "bfloat16"
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= found[
        -1
    ].keys()
    assert [*found[0]] == ["model.safetensors"]
    assert all(files == found[-1] for files in found if "config.json" in files)


def test_what_cannot_be_merged_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not the directory of a run"):
        merge.main(merge.Config(run=tmp_path, to=tmp_path / "merged"))
    run(train, 1, replace(SMALL, steps=1, out=tmp_path / "run"))
    for wrong, why in (
        ("runn", "there is no .*runn .did you mean .*/run[?]"),
        ("run/step-00000001", "it is a checkpoint of one. Name the run: .*/run --step 1 --to DIR"),
        ("run/model", "it is what one keeps beside its checkpoints, without weights. Name the run: .*/run --to DIR"),
    ):
        with pytest.raises(ValueError, match=why):
            merge.main(merge.Config(run=tmp_path / wrong, to=tmp_path / "merged"))
    (tmp_path / "taken").touch()
    with pytest.raises(ValueError, match="taken is taken, and a model is never overwritten"):
        merge.main(merge.Config(run=tmp_path / "run", to=tmp_path / "taken"))
    with pytest.raises(ValueError, match="has no checkpoint step-00000007; there are those of steps 1: choose with"):
        merge.main(merge.Config(run=tmp_path / "run", to=tmp_path / "merged", step=7))
    for to, why in (
        ("/proc/merged", "--to /proc/merged cannot be made: /proc: "),
        ("s3://b/m", "--to s3:/b/m is a URL"),
    ):
        with pytest.raises(ValueError, match=why):
            merge.main(merge.Config(run=tmp_path / "run", to=Path(to)))
    shutil.rmtree(tmp_path / "run" / "step-00000001")
    with pytest.raises(ValueError, match="has no checkpoint; there is none at all"):
        merge.main(merge.Config(run=tmp_path / "run", to=tmp_path / "merged"))


def test_of_several_checkpoints_the_newest_is_merged_and_the_others_are_told(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(SMALL, steps=2, save_every=1, out=tmp_path / "run")
    run(train, 1, config)
    merge.main(merge.Config(run=config.out, to=tmp_path / "newest"))
    assert "step-00000002 (--step chooses another: 1) is merged" in capsys.readouterr().out
    merge.main(merge.Config(run=config.out, to=tmp_path / "first", step=1))
    assert "step-00000001 is merged" in capsys.readouterr().out
    file = next((config.out / "step-00000002").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"step-00000002 is damaged(.|\n)*\n--step chooses another: 1$"):
        merge.main(merge.Config(run=config.out, to=tmp_path / "again"))


def test_generating_from_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Merge a run first"):
        infer.main(infer.Config(model=str(tmp_path / "nothing")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "model").mkdir(parents=True)
    for wrong, right in (("run/modle", "run/model"), ("./run/mod", "run/model"), ("./runs/model", "run/model")):
        with pytest.raises(ValueError, match=f"did you mean {right}[?]"):
            infer.main(infer.Config(model=wrong))
    with pytest.raises(ValueError, match="there is no run/nope, and run is a directory here"):
        infer.main(infer.Config(model="run/nope"))
    (tmp_path / "run" / "model" / "config.json").touch()
    with pytest.raises(ValueError) as told:
        infer.main(infer.Config(model=str(tmp_path / "run"), prompt="", tokens=0, temperature=-1.0))
    for part in ("is a run, not a model. Merge it first", "an empty prompt", "tokens=0 must", "temperature=-1.0 must"):
        assert part in str(told.value)
