"""Model shapes by name: a tiny one that trains on a laptop, and the true shapes of the families people train.

A preset is the configuration published with the weights of that name, without the weights. All pure.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from omni_models.seeing_shapes import gemma3, glm4v_moe, internvl, qwen2_5_omni, qwen2_5_vl, qwen2_vl, qwen3_vl
from omni_models.text_shapes import deepseek, glm4_moe, gpt_oss, llama3, qwen2, qwen3, qwen3_moe, shape

_DEEPSEEK_V3 = deepseek(
    *(7168, 18432, 61, 128),
    **{"model_type": "deepseek_v3", "vocab_size": 129280, "moe_intermediate_size": 2048, "n_routed_experts": 256},
    **{"n_shared_experts": 1, "num_experts_per_tok": 8, "topk_group": 4, "first_k_dense_replace": 3},
    **{"routed_scaling_factor": 2.5, "norm_topk_prob": True},
)
_GLM_AIR = glm4_moe(4096, 10944, 46, 96, 8, expert=1408, experts=128, dense=1, normed=False)
_TINY = shape(128, 384, 4, 4, 2) | {
    "model_type": "qwen3",
    "vocab_size": 272,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": None,
    "eos_token_id": 256,
}

_TINY_VL = {
    "model_type": "qwen2_5_vl",
    "text_config": shape(128, 384, 4, 4, 2)
    | {
        **{"vocab_size": 272, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6},
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        **{"pad_token_id": 256, "bos_token_id": None, "eos_token_id": 258},
    },
    "vision_config": {
        **{"depth": 2, "hidden_size": 64, "num_heads": 4, "intermediate_size": 128, "out_hidden_size": 128},
        **{"patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2, "tokens_per_second": 2},
        **{"window_size": 16, "fullatt_block_indexes": [1]},
    },
    "tie_word_embeddings": True,
    **{"vision_start_token_id": 259, "vision_end_token_id": 260, "image_token_id": 261, "video_token_id": 262},
}

_TINY_OMNI = {
    "model_type": "seed_omni",
    "text_config": _TINY | shape(64, 128, 3, 4, 4) | {"head_dim": 16, "max_position_embeddings": 1024},
    "encoders": {
        "image": {
            **{"token_id": 257, "features": 16},
            "tower": {
                "config": shape(48, 96, 2, 4, 4)
                | {"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4, "vision_use_head": False}
            },
            "projector": {"path": "torch.nn:Linear", "args": {"in_features": 48, "out_features": 64}},
        }
    },
    "decoders": {
        "picture": {
            **{"token_id": 258, "begin_id": 259, "count": 16},
            "head": {"path": "omni_models.decoders:VQHead", "args": {"hidden": 64, "codes": 48}},
        }
    },
    "tie_word_embeddings": True,
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
        "tiny-vl": _TINY_VL,
        "tiny-omni": _TINY_OMNI,
        "qwen2.5-0.5b": qwen2(896, 4864, 24, 14, 2, vocab=151936, tied=True),
        "qwen2.5-1.5b": qwen2(1536, 8960, 28, 12, 2, vocab=151936, tied=True),
        "qwen2.5-3b": qwen2(2048, 11008, 36, 16, 2, vocab=151936, tied=True),
        "qwen2.5-7b": qwen2(3584, 18944, 28, 28, 4),
        "qwen2.5-14b": qwen2(5120, 13824, 48, 40, 8, eps=1e-5),
        "qwen2.5-32b": qwen2(5120, 27648, 64, 40, 8, eps=1e-5),
        "qwen2.5-72b": qwen2(8192, 29568, 80, 64, 8, eps=1e-5),
        "qwen3-0.6b": qwen3(1024, 3072, 28, 16, 8, tied=True),
        "qwen3-1.7b": qwen3(2048, 6144, 28, 16, 8, tied=True),
        "qwen3-4b": qwen3(2560, 9728, 36, 32, 8, tied=True),
        "qwen3-8b": qwen3(4096, 12288, 36, 32, 8),
        "qwen3-14b": qwen3(5120, 17408, 40, 40, 8),
        "qwen3-32b": qwen3(5120, 25600, 64, 64, 8),
        "qwen3-30b-a3b": qwen3_moe(2048, 6144, 48, 32, 4, expert=768),
        "qwen3-235b-a22b": qwen3_moe(4096, 12288, 94, 64, 4, expert=1536),
        "llama-3-8b": llama3(4096, 14336, 32, 32, 8),
        "llama-3-70b": llama3(8192, 28672, 80, 64, 8),
        "llama-3.1-8b": llama3(4096, 14336, 32, 32, 8, factor=8.0),
        "llama-3.1-70b": llama3(8192, 28672, 80, 64, 8, factor=8.0),
        "llama-3.1-405b": llama3(16384, 53248, 126, 128, 8, factor=8.0),
        "llama-3.2-1b": llama3(2048, 8192, 16, 32, 8, factor=32.0, head_dim=64, tied=True),
        "llama-3.2-3b": llama3(3072, 8192, 28, 24, 8, factor=32.0, tied=True),
        "llama-3.3-70b": llama3(8192, 28672, 80, 64, 8, factor=8.0),
        "qwen2-0.5b": qwen2(896, 4864, 24, 14, 2, vocab=151936, tied=True),
        "qwen2-1.5b": qwen2(1536, 8960, 28, 12, 2, vocab=151936, tied=True),
        "qwen2-7b": qwen2(3584, 18944, 28, 28, 4),
        "qwen2-72b": qwen2(8192, 29568, 80, 64, 8),
        "deepseek-v2.5": deepseek(
            *(5120, 12288, 60, 128),
            **{"model_type": "deepseek_v2", "vocab_size": 102400, "moe_intermediate_size": 1536},
            **{"n_routed_experts": 160, "n_shared_experts": 2, "num_experts_per_tok": 6, "topk_group": 3},
            **{"first_k_dense_replace": 1, "routed_scaling_factor": 16.0, "topk_method": "group_limited_greedy"},
        ),
        "deepseek-v3": _DEEPSEEK_V3,
        "deepseek-r1": _DEEPSEEK_V3,
        "gpt-oss-20b": gpt_oss(24, 32),
        "gpt-oss-120b": gpt_oss(36, 128),
        "glm-4.5": glm4_moe(5120, 12288, 92, 96, 8, expert=1536, experts=160, dense=3, normed=True),
        "glm-4.5-air": _GLM_AIR,
        "qwen2-vl-2b": qwen2_vl(1536, 8960, 28, 12, 2, vocab=151936, tied=True),
        "qwen2-vl-7b": qwen2_vl(3584, 18944, 28, 28, 4),
        "qwen2-vl-72b": qwen2_vl(8192, 29568, 80, 64, 8),
        "qwen2.5-vl-3b": qwen2_5_vl(2048, 11008, 36, 16, 2, vocab=151936, tied=True),
        "qwen2.5-vl-7b": qwen2_5_vl(3584, 18944, 28, 28, 4),
        "qwen2.5-vl-32b": qwen2_5_vl(5120, 27648, 64, 40, 8, inner=3456),
        "qwen2.5-vl-72b": qwen2_5_vl(8192, 29568, 80, 64, 8, inner=3456),
        "qvq-72b": qwen2_vl(8192, 29568, 80, 64, 8),
        "qwen3-vl-2b": qwen3_vl(qwen3(2048, 6144, 28, 16, 8, tied=True), depth=24, hidden=1024, inner=4096),
        "qwen3-vl-4b": qwen3_vl(qwen3(2560, 9728, 36, 32, 8, tied=True), depth=24, hidden=1024, inner=4096),
        "qwen3-vl-8b": qwen3_vl(qwen3(4096, 12288, 36, 32, 8)),
        "qwen3-vl-32b": qwen3_vl(qwen3(5120, 25600, 64, 64, 8)),
        "qwen3-vl-30b-a3b": qwen3_vl(qwen3_moe(2048, 6144, 48, 32, 4, expert=768)),
        "qwen3-vl-235b-a22b": qwen3_vl(qwen3_moe(4096, 12288, 94, 64, 4, expert=1536)),
        "glm-4.5v": glm4v_moe(_GLM_AIR),
        "qwen2.5-omni-7b": qwen2_5_omni(3584, 18944, 28, 28, 4),
        "internvl3-1b": internvl(qwen2(896, 4864, 24, 14, 2), image_token=151667, vocab=151674),
        "internvl3-2b": internvl(qwen2(1536, 8960, 28, 12, 2), image_token=151667, vocab=151674),
        "internvl3-8b": internvl(qwen2(3584, 18944, 28, 28, 4), image_token=151667, vocab=151674),
        "internvl3-14b": internvl(qwen2(5120, 13824, 48, 40, 8), image_token=151667, vocab=151674),
        "internvl3.5-8b": internvl(qwen3(4096, 12288, 36, 32, 8), image_token=151671, vocab=151936),
        "gemma-3-4b": gemma3(2560, 10240, 34, 8, 4),
        "gemma-3-12b": gemma3(3840, 15360, 48, 16, 8),
        "gemma-3-27b": gemma3(5376, 21504, 62, 32, 16, head_dim=128),
    }
)
"""Fields of a Hugging Face configuration, by preset name."""
