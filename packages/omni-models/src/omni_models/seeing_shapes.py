"""Configurations of models that see, and hear, as functions of their sizes, a function a family. All pure."""

from typing import Any

from omni_models.text_shapes import qwen2, shape


def seeing(model_type: str, text: dict[str, Any], section: list[int], vision: dict[str, Any]) -> dict[str, Any]:
    """A Qwen with a tower: of positions in time, height and width, each has so many frequencies."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}
    inner = {name: value for name, value in text.items() if name not in ("model_type", "tie_word_embeddings")}
    return {
        "model_type": model_type,
        "text_config": inner | {"rope_parameters": rope},
        "vision_config": vision,
        "tie_word_embeddings": text["tie_word_embeddings"],
    }


def qwen2_vl(*sizes: int, tied: bool = False, vocab: int = 152064) -> dict[str, Any]:
    """Qwen2-VL and QVQ."""
    tower = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": sizes[0], "patch_size": 14}
    return seeing("qwen2_vl", qwen2(*sizes, vocab=vocab, tied=tied), [16, 24, 24], tower)


def qwen2_5_vl(*sizes: int, inner: int = 3420, tied: bool = False, vocab: int = 152064) -> dict[str, Any]:
    """Qwen2.5-VL."""
    tower = {
        **{"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": inner, "patch_size": 14},
        **{"out_hidden_size": sizes[0], "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
    }
    return seeing("qwen2_5_vl", qwen2(*sizes, vocab=vocab, tied=tied), [16, 24, 24], tower)


def qwen3_vl(text: dict[str, Any], *, depth: int = 27, hidden: int = 1152, inner: int = 4304) -> dict[str, Any]:
    """Qwen3-VL around a Qwen3, dense or a mixture."""
    tower = {
        **{"depth": depth, "hidden_size": hidden, "num_heads": 16, "intermediate_size": inner, "patch_size": 16},
        **{"out_hidden_size": text["hidden_size"], "num_position_embeddings": 2304},
        "deepstack_visual_indexes": [5, 11, 17] if depth == 24 else [8, 16, 24],
    }
    seen = seeing(text["model_type"].replace("qwen3", "qwen3_vl"), text, [24, 20, 20], tower)
    seen["text_config"]["rope_parameters"]["rope_theta"] = 5e6
    return seen


def gemma3(*sizes: int, head_dim: int = 256) -> dict[str, Any]:
    """Gemma 3 that sees."""
    return {
        "model_type": "gemma3",
        "text_config": shape(*sizes)
        | {"head_dim": head_dim, "vocab_size": 262208, "sliding_window": 1024, "max_position_embeddings": 131072}
        | ({"query_pre_attn_scalar": 168} if head_dim == 128 else {}),
        "vision_config": {
            **{"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
            **{"image_size": 896, "patch_size": 14, "vision_use_head": False},
        },
        "mm_tokens_per_image": 256,
    }


def glm4v_moe(text: dict[str, Any]) -> dict[str, Any]:
    """A mixture of GLM with a tower, whose feed-forward modules are as wide as what it gives."""
    tower = {
        **{"depth": 24, "hidden_size": 1536, "num_heads": 12, "intermediate_size": 10944, "patch_size": 14},
        **{"out_hidden_size": text["hidden_size"], "image_size": 336},
    }
    seen = seeing("glm4v_moe", text | {"tie_word_embeddings": False}, [8, 12, 12], tower)
    seen["text_config"]["rope_parameters"] |= {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    seen["text_config"] |= {"max_position_embeddings": 65536}
    del seen["text_config"]["use_qk_norm"]
    return seen


def qwen2_5_omni(*sizes: int, vocab: int = 152064) -> dict[str, Any]:
    """What sees, hears and thinks of Qwen2.5-Omni; what speaks is another model."""
    seen = qwen2_5_vl(*sizes, vocab=vocab) | {"model_type": "qwen2_5_omni_thinker"}
    ears = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
    return seen | {"audio_config": ears | {"num_mel_bins": 128, "output_dim": sizes[0]}}


def internvl(text: dict[str, Any], *, image_token: int, vocab: int) -> dict[str, Any]:
    """A Qwen with the InternViT of 300 million parameters."""
    tower = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    return {
        "model_type": "internvl",
        "text_config": text | {"vocab_size": vocab, "tie_word_embeddings": False},
        "vision_config": tower | {"attention_bias": True, "image_size": [448, 448], "patch_size": [14, 14]},
        "image_token_id": image_token,
        "tie_word_embeddings": False,
    }
