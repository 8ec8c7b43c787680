"""Every type of model of transformers that makes text of text, or of images and text, and a tiny configuration of it.

A type is known by the mappings of transformers; its configuration is made of the fields that its own has.
"""

from typing import Any

from sequence import SECTIONS, TYPES
from shapes import EXPERTS, ROUTED, SHAPE
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

KINDS = tuple(dict.fromkeys((*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)))

FIELDS: dict[str, Any] = {
    **{**SHAPE, **EXPERTS, **ROUTED, "head_dim": 8, "num_local_experts": 4, "moe_num_experts": 4, "moe_k": 2},
    **{"shared_expert_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8},
    **{"qk_nope_head_dim": 8, "v_head_dim": 16, "sliding_window": 5, "n_embd": 32, "n_layer": 2, "n_head": 4},
    **{"n_positions": 128, "n_inner": 48, "d_model": 32, "n_layers": 2, "n_heads": 4, "ffn_dim": 48, "num_layers": 2},
    **{"max_seq_len": 128, "word_embed_proj_dim": 32, "rotary_dim": 4, "kv_channels": 8, "embedding_size": 32},
    **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 80, "is_decoder": True},
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "activation_dropout", "residual_dropout"), 0.0),
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "hidden_dropout_prob"), 0.0),
    **dict.fromkeys(("attention_probs_dropout_prob", "classifier_dropout", "projector_dropout"), 0.0),
    **dict.fromkeys(("out_hidden_size", "text_hidden_size", "projection_dim", "projector_hidden_size"), 32),
    **dict.fromkeys(("projection_hidden_dim", "projection_intermediate_size", "image_token_embed_dim"), 32),
}
"""What configurations call their sizes, those of towers too."""
LATENT = {"num_key_value_heads": 4}
PADDED = {"pad_token_id": 0}
HYBRID = {"text_config": {"layer_types": ["linear_attention", "full_attention"]}}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
WIDE = {"hidden_size": 64}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
ROPES = {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}}
THREE_DIMS = {"text_config": {"rope_parameters": SECTIONS}}
EVEN_SECTIONS = SECTIONS | {"mrope_section": [1, 1, 2]}
OWN: dict[str, dict[str, Any]] = {
    **{kind: LATENT for kind in ("axk1", "axk2", "minicpm3", "youtu", "glm4_moe_lite", "dots3_note_text")},
    **{kind: LATENT for kind in ("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa")},
    **{kind: PADDED for kind in ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta")},
    **{kind: PADDED for kind in ("xlm-roberta-xl", "xmod")},
    **{kind: MAMBA for kind in ("bamba", "granitemoehybrid")},
    **{kind: THREE_DIMS for kind in ("cosmos3_edge", "glm46v", "glm4v", "glm_ocr", "glmga", "hunyuan_vl")},
    **{kind: THREE_DIMS for kind in ("paddleocr_vl", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")},
    "chameleon": {"vocabulary_map": {"<image>": 5}, "vq_config": {"base_channels": 32}},
    "cohere_compass": {"text_config": ROPES},
    "cohere_compass_text": ROPES,
    "cwm": {"bos_token_id": 0},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"]}},
    "dots3_note": {"text_config": LATENT},
    "emu3": {"text_config": {**PADDED, "bos_token_id": 0}},
    "ernie4_5_vl_moe": {"text_config": {"moe_intermediate_size": [16, 16], "rope_parameters": EVEN_SECTIONS}},
    "evolla": {"protein_encoder_config": PADDED},
    "exaone4_5": {"text_config": {"model_type": "exaone4"}},
    "florence2": {"vision_config": {"embed_dim": [8, 16, 32, 32]}},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "glm4v_moe": {"text_config": {"rope_parameters": SECTIONS | {"mrope_section": [1, 1, 0]}}},
    "glm5_next": {"text_config": {**LATENT, "qk_rope_head_dim": 0, "head_dim": 0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite4_vision": {
        **{"deepstack_layer_map": [[-1, 0]], "downsample_rate": "1/2", "spatial_target_layers": [0, 1, 0, 1]},
        **{"vision_config": WIDE, "qformer_config": {**WIDE, "encoder_hidden_size": 64}},
    },
    "janus": {"vq_config": {"num_embeddings": 16, "base_channels": 32}},
    "kimi_k25": {"text_config": LATENT},
    **{kind: {"text_config": PADDED} for kind in ("kosmos-2", "kosmos-2.5")},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"], "num_dense_layers": 1},
    "longcat_flash": {**LATENT, "zero_expert_num": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "mistral4": {**LATENT, "head_dim": 16},
    "mllama": {"text_config": {"bos_token_id": 0}},
    "modernbert-decoder": {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "mpt": {"attn_pdrop": 0},
    "muse_spark": {"audio_config": {"num_hidden_layers": 4, "hidden_sizes": [8, 8, 16, 32]}},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    **{kind: HYBRID for kind in ("minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "qwen3_5", "qwen3_5_moe")},
    "qwen2_vl": {"vision_config": {"embed_dim": 32}},
    "step3p7": {"text_config": {**PADDED, "mlp_layer_types": ["dense", "sparse"]}},
    "unlimited_ocr": {"text_config": LATENT},
    "zamba": {"num_hidden_layers": 3},
    "zaya": {"num_experts_per_tok": 1},
}
"""Fields of one type, beside these or instead."""


def tiny_config(kind: str) -> PreTrainedConfig:
    """A configuration of two small layers."""
    known = {fields["model_type"]: fields for _, fields in TYPES.values()}
    if kind in known:
        fields = dict(known[kind] if "text_config" in known[kind] else SHAPE | known[kind])
        del fields["model_type"]
    else:
        fields = tiny_fields(CONFIG_MAPPING[kind]())
    for name, value in OWN.get(kind, {}).items():
        fields[name] = fields.get(name, {}) | value if isinstance(value, dict) else value
    config = AutoConfig.for_model(kind, **fields)
    kinds = getattr(config, "layer_types", None)
    return AutoConfig.for_model(kind, **fields, layer_types=list(kinds)[:2]) if kinds and len(kinds) > 2 else config


def tiny_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Those of `FIELDS` that a configuration has, and of the configurations in it."""
    has = {*config.to_dict(), *config.attribute_map}
    inner = {name: getattr(config, name, None) for name in config.sub_configs}
    own = {name: value for name, value in FIELDS.items() if name in has}
    return own | {name: tiny_fields(each) for name, each in inner.items() if isinstance(each, PreTrainedConfig)}
