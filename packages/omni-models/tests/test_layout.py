"""Laws of the layout of the hub: what we write is what transformers writes, and any part of it can be read alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from shapes import MIXTURES, SHAPE, make_config
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from omni_models import fill_weights, hf_keys
from omni_models.layout import Piece, find_overlap, find_pieces
from omni_models.weights import loadable, plan_weights

VISION = {
    "text_config": {**SHAPE, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "vision_config": {
        **{"depth": 1, "num_heads": 4, "hidden_size": 32, "intermediate_size": 48, "patch_size": 4},
        **{"out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
    },
}
FAMILIES = [*MIXTURES, "llama", "qwen2", "qwen3_next", "gpt_neox", "qwen3_vl_moe"]


def make(family: str) -> PreTrainedModel:
    """A tiny model of plain transformers, no tensor of which is trivial."""
    torch.manual_seed(0)
    if family == "qwen3_vl_moe":
        config = AutoConfig.for_model(family, **VISION)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    else:
        plain = {"llama": {}, "gpt_neox": {}}.get(family)
        config = AutoConfig.for_model(family, **SHAPE) if plain is not None else make_config(family)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for tensor in loadable(model).values():
            tensor.copy_(torch.randn_like(tensor))
    return model


def empty(model: PreTrainedModel) -> PreTrainedModel:
    with torch.device("meta"):
        return type(model)(type(model.config).from_dict(model.config.to_dict()))


def files(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def export(model: PreTrainedModel, **kwargs: object) -> dict[str, Tensor]:
    tensors = {name: tensor.detach() for name, tensor in loadable(model).items()}
    return hf_keys(empty(model), **kwargs)(tensors)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_what_save_pretrained_writes_and_comes_back(family: str, tmp_path: Path) -> None:
    model = make(family)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    theirs, ours = files(tmp_path), export(model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    filled = fill_weights(empty(model), tmp_path)
    expected = loadable(model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loadable(filled).items())
    again = export(filled)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


def test_experts_are_named_one_by_one_and_share_the_memory_of_their_parameter() -> None:
    model = make("mixtral")
    out = hf_keys(model)({name: tensor.detach() for name, tensor in loadable(model).items()})
    one = out["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    whole = model.model.layers[1].mlp.experts.gate_up_proj
    assert torch.equal(one, whole[2, 48:])
    assert one.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def test_a_subset_is_written_as_that_subset_and_strangers_are_refused() -> None:
    model = make("qwen3_moe")
    name = "model.layers.0.mlp.experts.down_proj"
    out = hf_keys(model)({name: loadable(model)[name].detach()})
    assert sorted(out) == [f"model.layers.0.mlp.experts.{e}.down_proj.weight" for e in range(8)]
    with pytest.raises(ValueError, match="has no tensor stranger"):
        hf_keys(model)({"stranger": torch.zeros(1)})


def test_experts_stored_together_are_read_too(tmp_path: Path) -> None:
    model = make("qwen3_moe")
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in loadable(model).items()}, tmp_path / "m.safetensors"
    )
    filled = fill_weights(empty(model), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(filled.parameters(), model.parameters(), strict=True))


def test_the_transposed_layout_of_the_hub_is_read_and_written_back(tmp_path: Path) -> None:
    model = make("qwen3_vl_moe")
    stored = {
        name: tensor.transpose(1, 2).contiguous() if "experts" in name else tensor
        for name, tensor in export(model).items()
    }
    save_file(stored, tmp_path / "model.safetensors")
    filled = fill_weights(empty(model), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(filled.parameters(), model.parameters(), strict=True))
    again = export(filled, like={name: tuple(tensor.shape) for name, tensor in stored.items()})
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], stored[name]) for name in stored)


def test_a_missing_expert_is_told_by_its_name(tmp_path: Path) -> None:
    model = make("qwen3_moe")
    tensors = {name: tensor.contiguous() for name, tensor in export(model).items()}
    gone = tensors.pop("model.layers.1.mlp.experts.3.up_proj.weight")
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: model.layers.1.mlp.experts.3.up_proj.weight"):
        plan_weights(empty(model), tmp_path)
    tensors["model.layers.1.mlp.experts.3.up_proj.weight"] = gone[:-1]
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"experts.3.up_proj.weight: stored \[15, 32\], wanted \[16, 32\]"):
        plan_weights(empty(model), tmp_path)


def test_quantised_experts_are_refused_by_name(tmp_path: Path) -> None:
    model = make("qwen3_moe")
    tensors = {name: tensor.clone() for name, tensor in export(model).items()}
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"1 weights are quantised.*: {name} \(F8_E4M3\)"):
        plan_weights(empty(model), tmp_path)


def test_checkpoints_that_are_computed_are_refused_by_name() -> None:
    """hrm_text joins on the hub what is apart in the model, which is no view of it."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE))
    model.config.model_type = "hrm_text"
    shapes = {name: tuple(tensor.shape) for name, tensor in loadable(model).items()}
    with pytest.raises(ValueError, match=r"checkpoints of hrm_text hold tensors that are computed .*mlp.gate_up_proj"):
        find_pieces(model, shapes)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[tuple[int, ...], Piece, tuple[slice, ...]]:
    """A parameter, a view of it by indexing, slicing with steps and permuting, and a part that a rank might hold."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    base = torch.arange(torch.Size(shape).numel()).view(shape)
    index = []
    for size in shape:
        start = draw(st.integers(0, size - 1))
        stop = draw(st.integers(start + 1, size))
        index.append(draw(st.sampled_from([start, slice(start, stop, draw(st.integers(1, 3)))])))
    view = base[tuple(index)]
    view = view.permute(draw(st.permutations(range(view.ndim))))
    piece = Piece("param", "name", tuple(view.shape), view.stride(), view.storage_offset())
    part = []
    for size in shape:
        start = draw(st.integers(0, size))
        part.append(slice(start, draw(st.integers(start, size))))
    return shape, piece, tuple(part)


@given(cuts())
def test_a_rank_reads_exactly_what_its_part_shares_with_a_tensor(case: tuple[Any, Piece, tuple[slice, ...]]) -> None:
    shape, piece, part = case
    base = torch.arange(1, torch.Size(shape).numel() + 1).view(shape)
    expected = torch.zeros_like(base)
    piece.view(expected).copy_(piece.view(base))
    local = torch.zeros_like(base[part])
    if (overlap := find_overlap(piece, shape, part)) is not None:
        target = local[overlap.target].permute(overlap.order)
        target.copy_(piece.view(base)[overlap.source].reshape(target.shape))
    assert torch.equal(local, expected[part])
