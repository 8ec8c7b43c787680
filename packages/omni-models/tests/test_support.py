"""What would be silently wrong on packed rows is refused by name, and what is exact is not."""

import pytest
from shapes import EXPERTS, FAMILIES, LINEAR_FAMILIES, SHAPE, make_config
from torch import Tensor, nn
from transformers import AutoConfig

from omni_models import build_model, describe, unsupported
from omni_models.support import unsplittable

SMALL = {**SHAPE, "head_dim": 8}
REFUSED = {
    "llama4_text": ({"attention_chunk_size": 4, "num_local_experts": 2}, "cuts attention into chunks of 4"),
    "phimoe": ({"sliding_window": 5, "num_local_experts": 2}, "keeps its sliding window in a mask"),
    "qwen2_moe": (
        {"sliding_window": 5, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2, **EXPERTS},
        "keeps its sliding window in a mask",
    ),
    "doge": ({}, "its attention mask depends on the data"),
    "bert": ({}, "is_decoder is false"),
    "roberta": ({"is_decoder": True}, "counts positions from the padding token"),
    "kosmos-2.5": ({}, "its positions begin behind the padding token"),
    "bart": ({"encoder_layers": 1, "decoder_layers": 1, "d_model": 32}, "it takes no position_ids"),
    "bloom": ({}, "does not call transformers' attention interface"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "ShortConv carries something"),
    "minimax": ({"num_local_experts": 2}, "LightningAttention carries something"),
    "kimi_linear": ({}, "KimiLinearDeltaAttention carries something"),
    "bamba": ({"attn_layer_indices": [1], "mamba_n_heads": 4}, "BambaMixer carries something"),
    "falcon_h1": ({}, "FalconH1Mixer carries something"),
    "recurrent_gemma": ({}, "RecurrentGemmaRecurrentBlock, RecurrentGemmaRglru carries something"),
    "qwen4_exp_text": (
        {
            "num_hidden_layers": 4,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 8,
            "indexer_compress_ratio": 4,
            "ple_layer_ids": [1],
            "ple_embed_dim": 16,
            "ngram_vocab_size_base": 32,
        },
        "Qwen4ExpTextNGramEmbedding, Qwen4ExpTextPLELayer, Qwen4ExpTextQSAIndexer carries something",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_packed_rows_would_get_wrong_is_refused(kind: str) -> None:
    fields, reason = REFUSED[kind]
    config = AutoConfig.for_model(kind, **SMALL | fields)
    assert reason in " ".join(unsupported(build_model(config, device="meta")))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_exact_is_not_refused(family: str) -> None:
    assert unsupported(build_model(make_config(family), device="meta")) == []


@pytest.mark.parametrize("rope_type", ["dynamic", "yarn"])
def test_positions_that_depend_on_length_are_exact(rope_type: str) -> None:
    rope = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 16}
    config = make_config("llama", max_position_embeddings=16, rope_parameters=rope)
    assert unsupported(build_model(config, device="meta")) == []


@pytest.mark.parametrize("family", FAMILIES | LINEAR_FAMILIES)
def test_rows_of_what_passes_our_functions_can_be_split(family: str) -> None:
    assert unsplittable(build_model(make_config(family), device="meta")) == ()


class OtherGatedDeltaNet(nn.Module):
    """As if transformers called its functions by other names."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


def test_a_gated_delta_rule_that_calls_other_functions_is_refused_by_name() -> None:
    model = build_model(make_config("qwen3_next"), device="meta")
    assert unsupported(model) == []
    model.model.layers[0].linear_attn = OtherGatedDeltaNet()
    assert unsplittable(model) == ("OtherGatedDeltaNet",)
    assert "OtherGatedDeltaNet carries something from one packed document" in unsupported(model)[0]


def test_experts_without_the_interface_cannot_be_spread() -> None:
    model = build_model(make_config("qwen3_moe"), device="meta")
    experts = model.model.layers[0].mlp.experts
    assert describe(model).unspreadable == ()
    experts.norm = nn.LayerNorm(4)
    assert describe(model).unspreadable == (
        "Qwen3MoeExperts.norm.bias belongs to all experts at once",
        "Qwen3MoeExperts.norm.weight belongs to all experts at once",
    )
    del experts.norm, experts.has_gate
    assert "Qwen3MoeExperts does not call transformers' experts interface" in describe(model).unspreadable[0]
