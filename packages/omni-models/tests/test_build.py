"""Laws of reading configurations and building models."""

import json
from pathlib import Path

import pytest
import torch
from senses import SEEING, make_model, make_processor, picture, told_alone
from senses import make_config as make_seeing
from shapes import make_config
from transformers import AutoConfig

from omni_models import Media, build_model, encode_media, fill_weights, read_config, save_config

SMALL_35 = {
    "text_config": {"hidden_size": 32, "num_hidden_layers": 4, "vocab_size": 80, "intermediate_size": 48},
    "vision_config": {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32},
}


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


def test_what_makes_no_text_is_refused() -> None:
    told = "model type vit is no causal language model, nor one of images and text to text, the only kinds built so far"
    with pytest.raises(ValueError, match=told):
        build_model(AutoConfig.for_model("vit"), device="meta")
    with pytest.raises(ValueError, match=r"qwen2_5_omni is no .*: take its thinker_config, which is"):
        build_model(AutoConfig.for_model("qwen2_5_omni"), device="meta")


@pytest.mark.parametrize("family", SEEING)
def test_a_model_that_sees_is_built_with_its_tower_on_meta_and_with_weights(family: str) -> None:
    config = make_seeing(family)
    empty, built = build_model(config, device="meta"), build_model(config, seed=3).eval()
    assert type(empty) is type(built) and type(built).__name__.endswith("ForConditionalGeneration")
    assert all(param.is_meta for param in empty.parameters()) and empty.training
    filled = fill_weights(empty, None, seed=3)
    for (name, a), b in zip(built.state_dict().items(), filled.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    chat = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "x"}]
    document = encode_media(make_processor(family), config, chat, Media([picture(20, 30)]))
    assert built(**told_alone(family, document), use_cache=False).logits.isfinite().all()


@pytest.mark.parametrize("family", SEEING)
def test_a_model_that_sees_reads_what_plain_transformers_saved(family: str, tmp_path: Path) -> None:
    plain = make_model(family)
    plain.save_pretrained(tmp_path)
    ours = fill_weights(build_model(read_config(str(tmp_path)), device="meta"), tmp_path)
    for (name, a), b in zip(plain.state_dict().items(), ours.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_where_there_are_two_models_of_a_type_a_tower_in_the_configuration_decides() -> None:
    config = AutoConfig.for_model("qwen3_5", **SMALL_35)
    assert type(build_model(config, device="meta")).__name__ == "Qwen3_5ForConditionalGeneration"
    assert type(build_model(config.get_text_config(), device="meta")).__name__ == "Qwen3_5ForCausalLM"


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
