"""Laws of the facts: they are those of the model, and of what was published with it."""

import pytest
import torch
from senses import SEEING, make_model
from shapes import make_config

from omni_models import PRESETS, build_model, describe, flops_per_token, read_config

PUBLISHED = {
    "qwen2.5-0.5b": 0.49,
    "qwen2.5-1.5b": 1.54,
    "qwen2.5-3b": 3.09,
    "qwen2.5-7b": 7.61,
    "qwen2.5-14b": 14.8,
    "qwen2.5-32b": 32.8,
    "qwen2.5-72b": 72.7,
    "qwen3-0.6b": 0.6,
    "qwen3-1.7b": 1.7,
    "qwen3-4b": 4.0,
    "qwen3-8b": 8.2,
    "qwen3-14b": 14.8,
    "qwen3-32b": 32.8,
    "qwen3-30b-a3b": 30.5,
    "qwen3-235b-a22b": 235.0,
    "llama-3-8b": 8.03,
    "llama-3-70b": 70.6,
    "llama-3.1-8b": 8.03,
    "llama-3.1-70b": 70.6,
    "llama-3.1-405b": 405.9,
    "llama-3.2-1b": 1.24,
    "llama-3.2-3b": 3.21,
    "llama-3.3-70b": 70.6,
    "qwen2-0.5b": 0.494,
    "qwen2-1.5b": 1.54,
    "qwen2-7b": 7.62,
    "qwen2-72b": 72.7,
    "deepseek-v2.5": 236.0,
    "deepseek-v3": 671.0,
    "deepseek-r1": 671.0,
    "gpt-oss-20b": 20.9,
    "gpt-oss-120b": 116.8,
    "glm-4.5": 353.0,
    "glm-4.5-air": 106.8,
    "qwen2-vl-2b": 2.21,
    "qwen2-vl-7b": 8.29,
    "qwen2-vl-72b": 73.4,
    "qwen2.5-vl-3b": 3.75,
    "qwen2.5-vl-7b": 8.29,
    "qwen2.5-vl-32b": 33.5,
    "qwen2.5-vl-72b": 73.4,
    "qvq-72b": 73.4,
    "qwen3-vl-4b": 4.44,
    "qwen3-vl-8b": 8.77,
    "qwen3-vl-30b-a3b": 31.1,
    "qwen3-vl-2b": 2.13,
    "qwen3-vl-32b": 33.4,
    "qwen3-vl-235b-a22b": 236.0,
    "glm-4.5v": 107.7,
    # Of 10.7, without what speaks.
    "qwen2.5-omni-7b": 8.93,
    "internvl3-1b": 0.938,
    "internvl3-2b": 2.09,
    "internvl3-8b": 7.94,
    "internvl3-14b": 15.1,
    "internvl3.5-8b": 8.53,
    "gemma-3-4b": 4.3,
    "gemma-3-12b": 12.2,
    "gemma-3-27b": 27.4,
}
"""Billions of parameters, as their model cards say."""
TOWERS = {"visual", "vision_tower", "audio_tower", "multi_modal_projector"}
"""Names of what encodes media, and of what joins that to a decoder."""


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_published_size(preset: str) -> None:
    facts = describe(build_model(read_config(preset), device="meta"))
    if not preset.startswith("tiny"):
        assert facts.num_params / 1e9 == pytest.approx(PUBLISHED[preset], rel=0.015)
    assert sum(name.startswith(facts.decoder) for name in facts.blocks) == facts.num_layers


def test_active_parameters_leave_out_lookups_and_idle_experts() -> None:
    dense = describe(build_model(make_config("llama"), device="meta"))
    assert dense.active_params == dense.num_params - 80 * 32
    tied = describe(build_model(make_config("qwen2"), device="meta"))
    assert tied.tied_embeddings
    assert tied.active_params == tied.num_params
    moe = describe(build_model(make_config("qwen3_moe"), device="meta"))
    one_expert = 3 * 32 * 16
    assert moe.experts == ("model.layers.0.mlp.experts", "model.layers.1.mlp.experts")
    assert moe.active_params == moe.num_params - 80 * 32 - 2 * 4 * one_expert


@pytest.mark.parametrize("family", (*SEEING, "qwen2_audio"))
def test_a_token_of_text_is_multiplied_by_no_tower(family: str) -> None:
    model = make_model(family)
    facts = describe(model)
    # Towers lie beside the text model or beside the whole decoder: versions of transformers differ.
    towers = [p for name, p in model.named_parameters() if {*name.split(".")} & TOWERS]
    assert facts.tower_params == sum(p.numel() for p in towers) > 0
    looked_up = 0 if facts.tied_embeddings else model.get_input_embeddings().weight.numel()
    idle = 2 * (4 - 2) * 3 * 32 * 16 if facts.num_experts else 0
    assert facts.active_params == facts.num_params - facts.tower_params - looked_up - idle
    assert describe(build_model(make_config("llama"), device="meta")).tower_params == 0


def test_flops_are_those_of_the_published_accounting() -> None:
    facts = describe(build_model(read_config("qwen3-8b"), device="meta"))
    assert flops_per_token(facts, 8192) == pytest.approx(6 * 7.568e9 + 6 * 36 * 32 * 128 * 8192, rel=1e-3)
    whole, causal = flops_per_token(facts, 8192, causal=False), flops_per_token(facts, 8192)
    assert whole - causal == pytest.approx(6 * 36 * 32 * 128 * 8192)


def test_describing_touches_nothing() -> None:
    model = build_model(make_config("llama"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    describe(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_layers_of_different_shapes_are_refused_by_name() -> None:
    class Uneven:
        def get_text_config(self) -> "Uneven":
            return self

        model_type = "uneven"

        @property
        def num_attention_heads(self) -> int:
            raise RuntimeError("per layer")

    model = build_model(make_config("llama"), device="meta")
    model.config = Uneven()
    with pytest.raises(ValueError, match="uneven has layers of different shapes, not built yet: per layer"):
        describe(model)
