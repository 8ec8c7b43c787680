"""Laws of reading configurations and building models."""

import json
from pathlib import Path

import pytest
import torch
from shapes import make_config
from transformers import AutoConfig

from omni_models import build_model, read_config, save_config


def test_a_model_on_meta_has_shapes_only() -> None:
    model = build_model(make_config("qwen2"), device="meta")
    assert all(param.is_meta for param in model.parameters())
    assert model.training
    assert not model.config.use_cache


def test_overrides_change_fields() -> None:
    assert read_config("qwen3-8b", num_hidden_layers=2).num_hidden_layers == 2
    assert read_config("qwen3-8b").num_hidden_layers == 36
    with pytest.raises(ValueError, match="layer_types"):
        read_config("qwen3-8b", num_hidden_layers=40)


def test_the_configuration_given_is_not_changed() -> None:
    config = make_config("llama")
    before = config.to_dict()
    build_model(config, device="meta").config.hidden_size = 5
    assert config.to_dict() == before


def test_a_directory_is_read_as_it_was_saved(tmp_path: Path) -> None:
    model = build_model(make_config("llama"), device="meta")
    saved = read_config(str(save_config(model, tmp_path, eos_id=7)))
    assert type(saved) is type(model.config)
    assert saved.hidden_size == 32
    assert saved.eos_token_id == 7
    assert saved.architectures == ["LlamaForCausalLM"]
    assert AutoConfig.from_pretrained(tmp_path).use_cache
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 7
    assert not model.config.use_cache


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("qwen3-8bb", r"no preset \(did you mean qwen3-8b\?\)"),
        ("./nowhere", "no directory of that path"),
        ("a/b/c", "a hub name has the form owner/name"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(source: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_config(source)


def test_a_path_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config.json"):
        read_config(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is a file; name the directory"):
        read_config(str(tmp_path / "config.json"))
    with pytest.raises(ValueError, match=str(tmp_path)):
        read_config(str(tmp_path))
    (tmp_path / "config.json").write_text("{nonsense")
    with pytest.raises(ValueError, match=str(tmp_path)):
        read_config(str(tmp_path))


def test_everything_wrong_with_a_configuration_is_told_at_once() -> None:
    with pytest.raises(ValueError) as told:
        read_config("qwen2.5-7b", num_atention_heads=3, num_attention_heads=27, num_key_value_heads=5)
    message = str(told.value)
    assert "no field num_atention_heads (did you mean num_attention_heads?)" in message
    assert "hidden_size=3584 does not divide by num_attention_heads=27" in message
    assert "num_attention_heads=27 does not divide by num_key_value_heads=5" in message


def test_what_is_no_causal_language_model_is_refused() -> None:
    with pytest.raises(ValueError, match="model type vit is no causal language model"):
        build_model(AutoConfig.for_model("vit"), device="meta")


def test_quantised_weights_are_refused() -> None:
    config = make_config("llama")
    config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(ValueError, match="this llama is quantised"):
        build_model(config, device="meta")


def test_building_twice_gives_the_same_weights_and_leaves_the_random_state() -> None:
    state = torch.random.get_rng_state()
    first, second = (build_model(make_config("llama"), seed=3) for _ in range(2))
    other = build_model(make_config("llama"), seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert "norm" in name or not torch.equal(a, c)


def test_blocks_do_not_start_alike() -> None:
    first, second = (layer.self_attn.q_proj.weight for layer in build_model(make_config("llama")).model.layers)
    assert not torch.equal(first, second)
