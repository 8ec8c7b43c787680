"""Configurations of models of text as functions of their sizes, a function a family. All pure.

Sizes come in one order: hidden, feed-forward, layers, heads, key and value heads.
"""

from typing import Any

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def shape(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    """The five sizes, by the names of transformers."""
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


def qwen2(*sizes: int, vocab: int = 152064, tied: bool = False, eps: float = 1e-6) -> dict[str, Any]:
    """Qwen2 and Qwen2.5."""
    return shape(*sizes) | {
        "model_type": "qwen2",
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "rms_norm_eps": eps,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "bos_token_id": 151643,
        "eos_token_id": 151643,
    }


def qwen3(*sizes: int, tied: bool = False) -> dict[str, Any]:
    """Qwen3, dense."""
    return qwen2(*sizes, vocab=151936, tied=tied) | {
        "model_type": "qwen3",
        "head_dim": 128,
        "max_position_embeddings": 40960,
    }


def qwen3_moe(*sizes: int, expert: int) -> dict[str, Any]:
    """Qwen3, a mixture."""
    return qwen3(*sizes) | {
        "model_type": "qwen3_moe",
        "moe_intermediate_size": expert,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
    }


def llama3(*sizes: int, factor: float | None = None, head_dim: int = 128, tied: bool = False) -> dict[str, Any]:
    """Llama 3 to 3.3, from 3.1 on with positions stretched by `factor`."""
    rope = {"rope_type": "default", "rope_theta": 500000.0} if factor is None else _LLAMA3_ROPE | {"factor": factor}
    return shape(*sizes) | {
        "model_type": "llama",
        "vocab_size": 128256,
        "head_dim": head_dim,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192 if factor is None else 131072,
        "rope_parameters": rope,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    }


def deepseek(*sizes: int, **fields: Any) -> dict[str, Any]:
    """Attention whose keys and values are made from few numbers (MLA), and many small experts beside a shared one."""
    return shape(*sizes, sizes[3]) | {
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_group": 8,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 163840,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **fields,
    }


def gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    """gpt-oss, whose layers see a window and all in turn."""
    return shape(2880, 2880, layers, 64, 8) | {
        "model_type": "gpt_oss",
        "head_dim": 64,
        "vocab_size": 201088,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "layer_types": [("sliding_attention", "full_attention")[i % 2] for i in range(layers)],
        "eos_token_id": 200002,
    }


def glm4_moe(*sizes: int, expert: int, experts: int, dense: int, normed: bool) -> dict[str, Any]:
    """GLM-4.5."""
    return shape(*sizes) | {
        "model_type": "glm4_moe",
        "head_dim": 128,
        "vocab_size": 151552,
        "moe_intermediate_size": expert,
        "n_routed_experts": experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": dense,
        "use_qk_norm": normed,
        "attention_bias": True,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5 if normed else 1.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
        "eos_token_id": 151329,
    }
