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
    }
)
"""Fields of a Hugging Face configuration, by preset name."""
