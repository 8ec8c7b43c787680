"""Tiny configurations by family, for tests; and a way to run kernels of Triton without a GPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

SHAPE: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "mistral": {"model_type": "mistral", "sliding_window": 5, "head_dim": 8},
    "phi3": {"model_type": "phi3"},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 5,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 2.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "cohere": {"model_type": "cohere", "logit_scale": 0.5},
    "granite": {"model_type": "granite", "logits_scaling": 4.0},
    "gpt_oss": {
        "model_type": "gpt_oss",
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 5,
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 16, **EXPERTS, "num_experts": 8, "num_experts_per_tok": 4},
}

ROUTED = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
MIXTURES: dict[str, dict[str, Any]] = {
    "qwen3_moe": FAMILIES["qwen3_moe"],
    "mixtral": {"model_type": "mixtral", "sliding_window": 5, **LOCAL},
    "deepseek_v2": {
        **FAMILIES["deepseek_v3"],
        **{"model_type": "deepseek_v2", "n_group": 1, "topk_method": "greedy", "norm_topk_prob": False},
    },
    "deepseek_v3": FAMILIES["deepseek_v3"],
    "glm4_moe": {"model_type": "glm4_moe", "head_dim": 8, **ROUTED},
    "gpt_oss": FAMILIES["gpt_oss"],
    "olmoe": {"model_type": "olmoe", **EXPERTS},
    "minimax_m2": {"model_type": "minimax_m2", "head_dim": 8, **LOCAL},
    "granitemoe": {"model_type": "granitemoe", **LOCAL},
    "ernie4_5_moe": {
        "model_type": "ernie4_5_moe",
        **{"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 1},
    },
}
"""Families with experts."""

LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}
LINEAR_FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_next": {
        "model_type": "qwen3_next",
        "head_dim": 16,
        "shared_expert_intermediate_size": 16,
        **EXPERTS,
        **LINEAR,
    },
    "qwen3_5": {"model_type": "qwen3_5_text", "head_dim": 16, **LINEAR},
    "qwen3_5_moe": {
        "model_type": "qwen3_5_moe_text",
        "head_dim": 16,
        "shared_expert_intermediate_size": 16,
        **EXPERTS,
        **LINEAR,
    },
    "olmo_hybrid": {"model_type": "olmo_hybrid", **LINEAR},
}
"""Families with a gated delta rule layer and an attention layer."""


def make_config(family: str, **overrides: Any) -> PreTrainedConfig:
    """A tiny configuration of `family`."""
    fields = SHAPE | (FAMILIES | MIXTURES | LINEAR_FAMILIES)[family] | overrides
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def interpret(kind: str, cases: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What `triton_main.py` finds of `cases` in Triton's interpreter, which has to be chosen before any import."""
    torch.save(cases, folder / "given")
    main = Path(__file__).parent / "triton_main.py"
    command = [sys.executable, str(main), kind, str(folder / "given"), str(folder / "found")]
    ran = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    if "only 0-dimensional arrays can be converted to Python scalars" in ran.stderr:
        pytest.skip("the interpreter of this Triton cannot count with this numpy")
    assert ran.returncode == 0, ran.stderr
    return torch.load(folder / "found")
