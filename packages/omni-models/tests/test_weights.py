"""Laws of filling: the model's own initialisation, or the files' own numbers, and nothing unset."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from shapes import FAMILIES, make_config
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from omni_models import build_model, describe, fill_weights, plan_weights
from omni_models.weights import plan_reads

DENSE = sorted(family for family in FAMILIES if "moe" not in family and family not in ("gpt_oss", "deepseek_v3"))


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shard(model: PreTrainedModel) -> PreTrainedModel:
    mesh = init_device_mesh("cpu", (1,))
    for name in describe(model).blocks:
        fully_shard(model.get_submodule(name), mesh=mesh)
    return fully_shard(model, mesh=mesh)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_are_distributed_as_transformers_would(family: str) -> None:
    config = make_config(family, hidden_size=64)
    ours = build_model(config).state_dict()
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config, dtype=torch.float32).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        mine, other = ours[name].double(), tensor.double()
        if other.std() == 0 or other.numel() == 1:
            assert torch.equal(mine, other), name
        elif other.numel() > 64:
            noise = 7 * other.std().item() / other.numel() ** 0.5
            assert mine.mean().item() == pytest.approx(other.mean().item(), abs=noise), name
            assert mine.std().item() == pytest.approx(other.std().item(), abs=noise), name


@pytest.mark.parametrize("family", FAMILIES)
def test_buffers_are_those_of_transformers(family: str) -> None:
    ours = dict(build_model(make_config(family)).named_buffers())
    theirs = dict(AutoModelForCausalLM.from_config(make_config(family), dtype=torch.float32).named_buffers())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_random_weights_do_not_depend_on_sharding(one_rank: None, family: str) -> None:
    plain = build_model(make_config(family), seed=2)
    sharded = fill_weights(shard(build_model(make_config(family), device="meta")), None, seed=2)
    named = dict(sharded.named_parameters())
    assert named.keys() == dict(plain.named_parameters()).keys()
    assert all(torch.equal(named[name].full_tensor(), param) for name, param in plain.named_parameters())


def test_a_model_without_a_mesh_is_filled_where_it_is_told(device: str) -> None:
    filled = fill_weights(build_model(make_config("llama"), device="meta"), None, device=device)
    assert {x.device.type for x in (*filled.parameters(), *filled.buffers())} == {device}


@pytest.mark.parametrize("family", DENSE)
def test_weights_of_a_directory_are_read_exactly(one_rank: None, family: str, tmp_path: Path) -> None:
    saved = build_model(make_config(family), seed=1)
    saved.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    plain = fill_weights(build_model(make_config(family), device="meta"), tmp_path)
    sharded = fill_weights(shard(build_model(make_config(family), device="meta")), tmp_path)
    found = dict(sharded.named_parameters())
    for name, param in saved.named_parameters():
        assert torch.equal(dict(plain.named_parameters())[name], param), name
        assert torch.equal(found[name].full_tensor(), param), name
    for name, buffer in saved.named_buffers():
        assert torch.equal(dict(plain.named_buffers())[name], buffer), name


def test_tied_weights_stay_tied(one_rank: None, tmp_path: Path) -> None:
    build_model(make_config("qwen2")).save_pretrained(tmp_path)
    for source in (None, tmp_path):
        for model in (
            build_model(make_config("qwen2"), device="meta"),
            shard(build_model(make_config("qwen2"), device="meta")),
        ):
            filled = fill_weights(model, source)
            assert filled.lm_head.weight is filled.model.embed_tokens.weight


def test_half_precision_files_fill_full_precision_parameters(tmp_path: Path) -> None:
    saved = build_model(make_config("llama"), seed=1).to(torch.bfloat16)
    saved.save_pretrained(tmp_path)
    model = fill_weights(build_model(make_config("llama"), device="meta"), tmp_path)
    for mine, theirs in zip(model.parameters(), saved.parameters(), strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs.float())


def test_a_directory_of_the_bare_decoder_fills_the_model(tmp_path: Path) -> None:
    saved = build_model(make_config("qwen2"), seed=1)
    saved.model.save_pretrained(tmp_path)
    model = fill_weights(build_model(make_config("qwen2"), device="meta"), tmp_path)
    assert torch.equal(model.model.norm.weight, saved.model.norm.weight)
    assert torch.equal(model.lm_head.weight, saved.lm_head.weight)


def test_what_does_not_fit_is_told_at_once(tmp_path: Path) -> None:
    build_model(make_config("llama")).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["extra.weight"] = torch.zeros(1)
    del tensors["model.norm.weight"]
    tensors["lm_head.weight"] = torch.zeros(79, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as told:
        fill_weights(build_model(make_config("llama"), device="meta"), tmp_path)
    message = str(told.value)
    assert "1 missing: model.norm.weight" in message
    assert "1 left over: extra.weight" in message
    assert "1 of another shape: lm_head.weight: stored [79, 32], wanted [80, 32]" in message


def test_what_does_not_fit_is_told_by_the_names_of_files(tmp_path: Path) -> None:
    build_model(make_config("mixtral")).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    tensors[gone.replace("experts.1", "experts.77")] = tensors.pop(gone)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as told:
        fill_weights(build_model(make_config("mixtral"), device="meta"), tmp_path)
    assert f"1 missing: {gone}" in str(told.value)
    assert f"1 left over: {gone.replace('experts.1', 'experts.77')}" in str(told.value)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 99_000_000) + b"{" * 1000,
        struct.pack("<Q", 20) + b'{"a":{"dtype":"F32"}}',
        b"",
    ],
    ids=["larger than anything", "larger than the file", "no header", "empty"],
)
def test_a_file_that_lies_about_its_header_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: .*header"):
        plan_weights(build_model(make_config("llama"), device="meta"), tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", 3, None])
def test_an_index_names_no_file_elsewhere(name: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ValueError, match=r"index\.json (names files outside of its directory|is damaged)"):
        plan_weights(build_model(make_config("llama"), device="meta"), tmp_path)


@pytest.mark.parametrize("family", ["llama"])
def test_missing_files_are_refused(family: str, tmp_path: Path) -> None:
    model = build_model(make_config(family), device="meta")
    with pytest.raises(ValueError, match=r"holds no .safetensors file"):
        fill_weights(model, tmp_path)
    build_model(make_config(family)).save_pretrained(tmp_path, max_shard_size="20KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[0]
    gone.unlink()
    with pytest.raises(ValueError, match=f"names files that are not there: {gone.name}"):
        fill_weights(build_model(make_config(family), device="meta"), tmp_path)
    with pytest.raises(ValueError, match="no directory 'nowhere'"):
        fill_weights(build_model(make_config(family), device="meta"), "nowhere")


def test_reads_are_planned_without_files() -> None:
    wanted = {"model.a": (2, 3), "model.b": (4,)}
    assert plan_reads(wanted, {"model.a": (2, 3), "model.b": (4,)}) == {"model.a": "model.a", "model.b": "model.b"}
    assert plan_reads(wanted, {"a": (2, 3), "b": (4,)}, prefix="model.") == {"model.a": "a", "model.b": "b"}
    assert plan_reads(wanted, {**wanted, "tied": (1,)}, optional=frozenset({"tied"})).keys() == wanted.keys()


def test_a_buffer_that_nothing_sets_is_found() -> None:
    model = build_model(make_config("llama"), device="meta")
    model.model.register_buffer("forgotten", torch.empty(2, device="meta"), persistent=False)
    with pytest.raises(ValueError, match=r"leaves buffers unset: \['model.forgotten'\]"):
        fill_weights(model, None)


def test_old_names_of_a_family_are_understood(tmp_path: Path) -> None:
    config = make_config("llama").to_dict()
    fields = {key: config[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    neox = AutoConfig.for_model("gpt_neox", num_attention_heads=4, **fields)
    saved = build_model(neox, seed=1)
    saved.save_pretrained(tmp_path)
    filled = fill_weights(build_model(neox, device="meta"), tmp_path)
    for (name, mine), theirs in zip(filled.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_what_a_model_needs_is_read_even_where_old_names_like_it_are_ignored(tmp_path: Path) -> None:
    """gpt2 is told to ignore `attn.bias`, a mask of old checkpoints, which is part of the name of a bias it needs."""
    gpt2 = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=4, n_positions=64, vocab_size=80)
    saved = build_model(gpt2, seed=1)
    saved.save_pretrained(tmp_path)
    filled = fill_weights(build_model(gpt2, device="meta"), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(filled.parameters(), saved.parameters(), strict=True))


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    saved = build_model(make_config("mixtral"), seed=1)
    saved.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.block_sparse_moe.gate.weight"
    tensors[name.replace("block_sparse_moe", "mlp")] = torch.zeros_like(tensors[name])
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"are two names of one tensor: leave one out"):
        fill_weights(build_model(make_config("mixtral"), device="meta"), tmp_path)
