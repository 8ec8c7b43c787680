"""Model shapes by name: a tiny one that trains on a laptop, and the true shapes of the families people train.

A preset is the configuration published with the weights of that name, without the weights. All pure.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _shape(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


def _qwen2(*shape: int, vocab: int = 152064, tied: bool = False, eps: float = 1e-6) -> dict[str, Any]:
    return _shape(*shape) | {
        "model_type": "qwen2",
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "rms_norm_eps": eps,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "bos_token_id": 151643,
        "eos_token_id": 151643,
    }


def _qwen3(*shape: int, tied: bool = False) -> dict[str, Any]:
    return _qwen2(*shape, vocab=151936, tied=tied) | {
        "model_type": "qwen3",
        "head_dim": 128,
        "max_position_embeddings": 40960,
    }


def _qwen3_moe(*shape: int, expert: int) -> dict[str, Any]:
    return _qwen3(*shape) | {
        "model_type": "qwen3_moe",
        "moe_intermediate_size": expert,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
    }


def _llama3(*shape: int, factor: float | None = None, head_dim: int = 128, tied: bool = False) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 500000.0} if factor is None else _LLAMA3_ROPE | {"factor": factor}
    return _shape(*shape) | {
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


def _deepseek(*shape: int, **fields: Any) -> dict[str, Any]:
    """Attention whose keys and values are made from few numbers (MLA), and many small experts beside a shared one."""
    return _shape(*shape, shape[3]) | {
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


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    return _shape(2880, 2880, layers, 64, 8) | {
        "model_type": "gpt_oss",
        "head_dim": 64,
        "vocab_size": 201088,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "layer_types": [("sliding_attention", "full_attention")[i % 2] for i in range(layers)],
        "eos_token_id": 200002,
    }


def _glm4_moe(*shape: int, expert: int, experts: int, dense: int, normed: bool) -> dict[str, Any]:
    return _shape(*shape) | {
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


def _seeing(model_type: str, text: dict[str, Any], section: list[int], vision: dict[str, Any]) -> dict[str, Any]:
    """A Qwen with a tower: of positions in time, height and width, each has so many frequencies."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}
    inner = {name: value for name, value in text.items() if name not in ("model_type", "tie_word_embeddings")}
    return {
        "model_type": model_type,
        "text_config": inner | {"rope_parameters": rope},
        "vision_config": vision,
        "tie_word_embeddings": text["tie_word_embeddings"],
    }


def _qwen2_vl(*shape: int, tied: bool = False, vocab: int = 152064) -> dict[str, Any]:
    tower = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": shape[0], "patch_size": 14}
    return _seeing("qwen2_vl", _qwen2(*shape, vocab=vocab, tied=tied), [16, 24, 24], tower)


def _qwen2_5_vl(*shape: int, inner: int = 3420, tied: bool = False, vocab: int = 152064) -> dict[str, Any]:
    tower = {
        **{"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": inner, "patch_size": 14},
        **{"out_hidden_size": shape[0], "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
    }
    return _seeing("qwen2_5_vl", _qwen2(*shape, vocab=vocab, tied=tied), [16, 24, 24], tower)


def _qwen3_vl(text: dict[str, Any], *, depth: int = 27, hidden: int = 1152, inner: int = 4304) -> dict[str, Any]:
    tower = {
        **{"depth": depth, "hidden_size": hidden, "num_heads": 16, "intermediate_size": inner, "patch_size": 16},
        **{"out_hidden_size": text["hidden_size"], "num_position_embeddings": 2304},
        "deepstack_visual_indexes": [5, 11, 17] if depth == 24 else [8, 16, 24],
    }
    seen = _seeing(text["model_type"].replace("qwen3", "qwen3_vl"), text, [24, 20, 20], tower)
    seen["text_config"]["rope_parameters"]["rope_theta"] = 5e6
    return seen


def _gemma3(*shape: int, head_dim: int = 256) -> dict[str, Any]:
    return {
        "model_type": "gemma3",
        "text_config": _shape(*shape)
        | {"head_dim": head_dim, "vocab_size": 262208, "sliding_window": 1024, "max_position_embeddings": 131072}
        | ({"query_pre_attn_scalar": 168} if head_dim == 128 else {}),
        "vision_config": {
            **{"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
            **{"image_size": 896, "patch_size": 14, "vision_use_head": False},
        },
        "mm_tokens_per_image": 256,
    }


_DEEPSEEK_V3 = _deepseek(
    *(7168, 18432, 61, 128),
    **{"model_type": "deepseek_v3", "vocab_size": 129280, "moe_intermediate_size": 2048, "n_routed_experts": 256},
    **{"n_shared_experts": 1, "num_experts_per_tok": 8, "topk_group": 4, "first_k_dense_replace": 3},
    **{"routed_scaling_factor": 2.5, "norm_topk_prob": True},
)
_TINY = _shape(128, 384, 4, 4, 2) | {
    "model_type": "qwen3",
    "vocab_size": 272,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": None,
    "eos_token_id": 256,
}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "tiny": _TINY,
        "tiny-moe": _TINY
        | {
            "model_type": "qwen3_moe",
            "moe_intermediate_size": 96,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
        },
        "qwen2.5-0.5b": _qwen2(896, 4864, 24, 14, 2, vocab=151936, tied=True),
        "qwen2.5-1.5b": _qwen2(1536, 8960, 28, 12, 2, vocab=151936, tied=True),
        "qwen2.5-3b": _qwen2(2048, 11008, 36, 16, 2, vocab=151936, tied=True),
        "qwen2.5-7b": _qwen2(3584, 18944, 28, 28, 4),
        "qwen2.5-14b": _qwen2(5120, 13824, 48, 40, 8, eps=1e-5),
        "qwen2.5-32b": _qwen2(5120, 27648, 64, 40, 8, eps=1e-5),
        "qwen2.5-72b": _qwen2(8192, 29568, 80, 64, 8, eps=1e-5),
        "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, 8, tied=True),
        "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, 8, tied=True),
        "qwen3-4b": _qwen3(2560, 9728, 36, 32, 8, tied=True),
        "qwen3-8b": _qwen3(4096, 12288, 36, 32, 8),
        "qwen3-14b": _qwen3(5120, 17408, 40, 40, 8),
        "qwen3-32b": _qwen3(5120, 25600, 64, 64, 8),
        "qwen3-30b-a3b": _qwen3_moe(2048, 6144, 48, 32, 4, expert=768),
        "qwen3-235b-a22b": _qwen3_moe(4096, 12288, 94, 64, 4, expert=1536),
        "llama-3-8b": _llama3(4096, 14336, 32, 32, 8),
        "llama-3-70b": _llama3(8192, 28672, 80, 64, 8),
        "llama-3.1-8b": _llama3(4096, 14336, 32, 32, 8, factor=8.0),
        "llama-3.1-70b": _llama3(8192, 28672, 80, 64, 8, factor=8.0),
        "llama-3.1-405b": _llama3(16384, 53248, 126, 128, 8, factor=8.0),
        "llama-3.2-1b": _llama3(2048, 8192, 16, 32, 8, factor=32.0, head_dim=64, tied=True),
        "llama-3.2-3b": _llama3(3072, 8192, 28, 24, 8, factor=32.0, tied=True),
        "llama-3.3-70b": _llama3(8192, 28672, 80, 64, 8, factor=8.0),
        "qwen2-0.5b": _qwen2(896, 4864, 24, 14, 2, vocab=151936, tied=True),
        "qwen2-1.5b": _qwen2(1536, 8960, 28, 12, 2, vocab=151936, tied=True),
        "qwen2-7b": _qwen2(3584, 18944, 28, 28, 4),
        "qwen2-72b": _qwen2(8192, 29568, 80, 64, 8),
        "deepseek-v2.5": _deepseek(
            *(5120, 12288, 60, 128),
            **{"model_type": "deepseek_v2", "vocab_size": 102400, "moe_intermediate_size": 1536},
            **{"n_routed_experts": 160, "n_shared_experts": 2, "num_experts_per_tok": 6, "topk_group": 3},
            **{"first_k_dense_replace": 1, "routed_scaling_factor": 16.0, "topk_method": "group_limited_greedy"},
        ),
        "deepseek-v3": _DEEPSEEK_V3,
        "deepseek-r1": _DEEPSEEK_V3,
        "gpt-oss-20b": _gpt_oss(24, 32),
        "gpt-oss-120b": _gpt_oss(36, 128),
        "glm-4.5": _glm4_moe(5120, 12288, 92, 96, 8, expert=1536, experts=160, dense=3, normed=True),
        "glm-4.5-air": _glm4_moe(4096, 10944, 46, 96, 8, expert=1408, experts=128, dense=1, normed=False),
        "qwen2-vl-2b": _qwen2_vl(1536, 8960, 28, 12, 2, vocab=151936, tied=True),
        "qwen2-vl-7b": _qwen2_vl(3584, 18944, 28, 28, 4),
        "qwen2-vl-72b": _qwen2_vl(8192, 29568, 80, 64, 8),
        "qwen2.5-vl-3b": _qwen2_5_vl(2048, 11008, 36, 16, 2, vocab=151936, tied=True),
        "qwen2.5-vl-7b": _qwen2_5_vl(3584, 18944, 28, 28, 4),
        "qwen2.5-vl-32b": _qwen2_5_vl(5120, 27648, 64, 40, 8, inner=3456),
        "qwen2.5-vl-72b": _qwen2_5_vl(8192, 29568, 80, 64, 8, inner=3456),
        "qvq-72b": _qwen2_vl(8192, 29568, 80, 64, 8),
        "qwen3-vl-4b": _qwen3_vl(_qwen3(2560, 9728, 36, 32, 8, tied=True), depth=24, hidden=1024, inner=4096),
        "qwen3-vl-8b": _qwen3_vl(_qwen3(4096, 12288, 36, 32, 8)),
        "qwen3-vl-30b-a3b": _qwen3_vl(_qwen3_moe(2048, 6144, 48, 32, 4, expert=768)),
        "gemma-3-4b": _gemma3(2560, 10240, 34, 8, 4),
        "gemma-3-12b": _gemma3(3840, 15360, 48, 16, 8),
        "gemma-3-27b": _gemma3(5376, 21504, 62, 32, 16, head_dim=128),
    }
)
"""Fields of a Hugging Face configuration, by preset name."""
