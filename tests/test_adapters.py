"""Laws of runs that train adapters: a stop changes no bit, a checkpoint holds them alone, and plain peft loads them."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import merge
import pytest
import torch
from decide import decide
from peft import PeftModel
from ranks import Run
from request import Config
from training import SMALL, train, write_family
from transformers import AutoModelForCausalLM, AutoTokenizer

from omni_ckpt import step_dir, stored
from omni_mesh import MeshConfig
from omni_models import BalanceConfig, LoraSettings, build_model, read_config
from omni_parallel import AdamWConfig

LORA = LoraSettings(rank=4, alpha=8, targets=("q_proj", "v_proj"))
TWO = MeshConfig(shard=2)
IDS = torch.arange(40)[None]


def config_in(folder: Path, family: str = "llama") -> Config:
    """A run of adapters beside weights that are in `folder`."""
    base = folder / "base"
    if not base.exists():
        build_model(read_config(write_family(family, folder)), seed=7).save_pretrained(base)
    mesh = replace(TWO, ep=2) if "moe" in family else TWO
    how = {"model": str(base), "weights": str(base), "tokenizer": "bytes", "optim": AdamWConfig(lr=1e-2)}
    lora = replace(LORA, dropout=0.1) if "moe" in family else LORA
    return replace(SMALL, **how, lora=lora, mesh=mesh, steps=4, out=folder / "run")


def plain(base: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_run_is_stopped_and_goes_on_and_plain_peft_loads_what_it_made(family: str, run: Run, tmp_path: Path) -> None:
    config = config_in(tmp_path, family)
    whole = run(train, 2, config)[0]
    assert whole[-1]["loss"] < whole[0]["loss"]
    split = replace(config, out=tmp_path / "split")
    run(train, 2, replace(split, stop_after=2))
    again = run(train, 2, split)[0]
    assert [(row["loss"], row["grad_norm"]) for row in again] == [(row["loss"], row["grad_norm"]) for row in whole]

    held = stored(step_dir(config.out, 4), prefix="state.model")
    assert held and all("lora_" in name for name in held)
    base = tmp_path / "base"
    merge.main(merge.Config(run=config.out, to=tmp_path / "adapters"))
    merge.main(merge.Config(run=config.out, to=tmp_path / "merged", lora="merge"))
    files = {path.name for path in (tmp_path / "adapters").iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
    } <= files and "config.json" not in files
    assert AutoTokenizer.from_pretrained(tmp_path / "adapters")("hé")["input_ids"] == list("hé".encode())
    with warnings.catch_warnings():
        # What peft calls that transformers has another name for.
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        adapted = PeftModel.from_pretrained(plain(base), str(tmp_path / "adapters")).eval()
    assert adapted.peft_config["default"].base_model_name_or_path == str(base)
    assert (logits(adapted) - logits(plain(base))).abs().max() > 1e-2
    torch.testing.assert_close(logits(plain(tmp_path / "merged")), logits(adapted), atol=1e-5, rtol=1e-5)


def test_adapters_start_and_go_the_same_way_on_any_mesh(run: Run, tmp_path: Path) -> None:
    config = config_in(tmp_path)
    rows = [run(train, n, replace(config, mesh=MeshConfig(shard=n), out=tmp_path / f"{n}"))[0] for n in (1, 2)]
    for one, two in zip(*rows, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)


def test_frozen_parameters_stay_and_are_in_checkpoints(run: Run, tmp_path: Path) -> None:
    base = config_in(tmp_path)
    config = replace(base, lora=LoraSettings(), freeze=("embed", "layers.[01]."))
    run(train, 2, replace(config, stop_after=2))
    run(train, 2, config)
    merge.main(merge.Config(run=config.out, to=tmp_path / "merged"))
    before, after = plain(tmp_path / "base").state_dict(), plain(tmp_path / "merged").state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if "embed" in name or ".layers.0." in name or ".layers.1." in name}


def test_what_a_run_of_adapters_cannot_be_is_told_at_once(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    wrong = replace(
        config,
        weights=None,
        lora=replace(LORA, targets=("q_prj",), alpha=-1.0),
        freeze=("embd_tokens",),
        balance=BalanceConfig(rate=0.1),
    )
    with pytest.raises(ValueError) as told:
        decide(wrong, 2)
    for part in (
        "--lora.targets q_prj is no linear layer. Did you mean q_proj?",
        "--lora.alpha=-1.0 must be positive",
        "--freeze embd_tokens is in no name of a parameter. Did you mean embed_tokens?",
        "--freeze with --lora.rank",
        "--lora.rank 4 trains adapters of weights that are there, and these would be random: name --weights.",
        "--balance.rate 0.1 moves biases of routers, which adapters do not hold",
    ):
        assert part in str(told.value)
    with pytest.raises(ValueError, match=r"--lora.dropout 0.1 draws random numbers in model\.layers\.0\.mlp"):
        decide(replace(config, tile_mlp=16, lora=LoraSettings(rank=2, dropout=0.1)), 2)
    with pytest.raises(ValueError, match=r"--lora\.rank=0 is no adapter, but lora.targets is given"):
        decide(replace(config, lora=replace(LORA, rank=0)), 2)


def test_adapters_go_on_beside_their_own_weights_only(run: Run, tmp_path: Path) -> None:
    config = replace(config_in(tmp_path), steps=2, mesh=MeshConfig(shard=1))
    run(train, 1, config)
    (tmp_path / "base").rename(tmp_path / "other")
    other = str(tmp_path / "other")
    with pytest.raises(ValueError, match=r"has adapters of --weights .*base, and no more than these"):
        decide(replace(config, weights=other, model=other), 1)
    with pytest.raises(ValueError, match="cannot be continued by"):
        decide(replace(config, weights=other, model=other, lora=replace(LORA, rank=8)), 1)
    merge.main(merge.Config(run=config.out, to=tmp_path / "merged", lora="merge", base=other))
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    run(train, 1, replace(SMALL, steps=1, out=tmp_path / "all"))
    with pytest.raises(ValueError, match="has no adapters, but is a model by itself"):
        merge.main(merge.Config(run=tmp_path / "all", to=tmp_path / "x", lora="merge"))
