"""What would be silently wrong on packed rows is refused by name, and what is exact is not."""

import pytest
from shapes import EXPERTS, FAMILIES, SHAPE, make_config
from transformers import AutoConfig

from omni_models import build_model, unsupported

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
    "bart": ({"encoder_layers": 1, "decoder_layers": 1, "d_model": 32}, "it takes no position_ids"),
    "bloom": ({}, "does not call transformers' attention interface"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "ShortConv carries something"),
    "minimax": ({"num_local_experts": 2}, "LightningAttention carries something"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_packed_rows_would_get_wrong_is_refused(kind: str) -> None:
    fields, reason = REFUSED[kind]
    config = AutoConfig.for_model(kind, **SMALL | fields)
    assert reason in " ".join(unsupported(build_model(config, device="meta"), seq_len=24))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_exact_is_not_refused(family: str) -> None:
    assert unsupported(build_model(make_config(family), device="meta"), seq_len=24) == []


@pytest.mark.parametrize(("seq_len", "refused"), [(16, False), (17, True), (None, True)])
def test_positions_that_grow_with_the_row_are_exact_up_to_their_length(seq_len: int | None, refused: bool) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 16}
    config = make_config("llama", max_position_embeddings=16, rope_parameters=rope)
    reasons = unsupported(build_model(config, device="meta"), seq_len=seq_len)
    assert bool(reasons) == refused
    assert not refused or "dynamic position encoding" in reasons[0]


def test_a_router_loss_is_not_dropped_in_silence() -> None:
    config = make_config("qwen3_moe", output_router_logits=True, router_aux_loss_coef=0.1)
    assert "asks for a router loss" in unsupported(build_model(config, device="meta"))[0]
