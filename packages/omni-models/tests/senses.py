"""Tiny models that see or hear, and their processors, made by hand: nothing is downloaded."""

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2AudioForConditionalGeneration,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.gemma3.image_processing_gemma3 import Gemma3ImageProcessor
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.glm4v.image_processing_glm4v import Glm4vImageProcessor
from transformers.models.glm4v.processing_glm4v import Glm4vProcessor
from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_audio.processing_qwen2_audio import Qwen2AudioProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor

from omni_models import Encoded

SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>"),
    *("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<boi>", "<soft>", "<eoi>"),
)
QWEN = ("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")
BARE = ("<boi>", "")
TILES = ("<|image_pad|>\n", "<|video_pad|>\n")
GLM = ("<|begin_of_image|><|image|><|end_of_image|>", "<|begin_of_video|><|video|><|end_of_video|>")
TEXT = {
    **{"vocab_size": 288, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **{"pad_token_id": None, "bos_token_id": None, "eos_token_id": 1},
}
PATCHES = {"patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
SEEING = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "qwen3_vl_moe", "qwen2_5_omni_thinker", "gemma3", "internvl")
FILMING = tuple(family for family in SEEING if family != "gemma3")
HEARING = ("qwen2_audio", "qwen2_5_omni_thinker")


MARKS = {"glm4v": GLM, "gemma3": BARE, "internvl": TILES}
NAMED = {
    "gemma3": {"boi_token": "<boi>", "image_token": "<soft>", "eoi_token": "<eoi>"},
    "internvl": {
        **{"start_image_token": "<|vision_start|>", "end_image_token": "<|vision_end|>"},
        **{"context_image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    },
    "qwen2_5_omni_thinker": {
        **{"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "audio_token": "<|AUDIO|>"},
        **{"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"},
        **{"audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"},
    },
}
"""Tokens that a processor looks for by name."""


def template(image: str, video: str, *, marked: bool = False) -> str:
    """A chat template in the manner of Qwen's, with or without the mark of what the assistant says."""
    start, end = ("{% generation %}", "{% endgeneration %}") if marked else ("", "")
    content = (
        "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{% if p.type == 'image' %}" + image + "{% elif p.type == 'video' %}" + video + "{% elif p.type == 'audio' %}"
        "<|audio_bos|><|AUDIO|><|audio_eos|>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>"
    )
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        + (start + content + end)
        + "{% else %}"
        + content
        + "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def make_tokenizer(**named: str) -> PreTrainedTokenizerFast:
    """Bytes, and the special tokens of all families, some of which a processor looks for by name."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, extra_special_tokens=named)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)}, replace_extra_special_tokens=False)
    return tokenizer


class OmniOfSmallFilms(Qwen2_5OmniProcessor):
    """One that asks no more of its part for films than these are."""

    def __call__(self, **given: Any) -> Any:
        if given.get("videos") is not None:
            given["videos_kwargs"] = {"size": dict(self.video_processor.size), **(given.get("videos_kwargs") or {})}
        return super().__call__(**given)


def make_processor(family: str, *, marked: bool = False) -> Any:
    """The processor of a family, for images of 8 x 8 to 64 x 64 pixels or tiles of 16 x 16, and sounds of a second."""
    tokenizer = make_tokenizer(**NAMED.get(family, {}))
    chat = template(*MARKS.get(family, QWEN), marked=marked)
    hears = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    if family == "qwen2_audio":
        return Qwen2AudioProcessor(hears, tokenizer, chat_template=chat)
    tile = {"size": {"height": 16, "width": 16}}
    if family == "gemma3":
        sees = Gemma3ImageProcessor(**tile, do_pan_and_scan=False)
        return Gemma3Processor(sees, tokenizer, chat_template=chat, image_seq_length=4)
    if family == "internvl":
        sees, watches = GotOcr2ImageProcessor(**tile, max_patches=3), InternVLVideoProcessor(**tile)
        return InternVLProcessor(sees, tokenizer, watches, image_seq_length=4, chat_template=chat)
    return _make_processor_of_patches(family, tokenizer, hears, chat)


def _make_processor_of_patches(family: str, tokenizer: Any, hears: Any, chat: str) -> Any:
    size = {"shortest_edge": 8 * 8, "longest_edge": 64 * 64}
    how = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "size": size}
    film = {**how, "size": {"shortest_edge": 8 * 8, "longest_edge": 16 * 64 * 64}}
    if family == "glm4v":
        return Glm4vProcessor(Glm4vImageProcessor(**how), tokenizer, Glm4vVideoProcessor(**film), chat_template=chat)
    if family.startswith("qwen3_vl"):
        sees = Qwen3VLVideoProcessor(**film)
        return Qwen3VLProcessor(Qwen2VLImageProcessor(**how), tokenizer, sees, chat_template=chat)
    sees, watches = Qwen2VLImageProcessor(**how), Qwen2VLVideoProcessor(**film)
    if family == "qwen2_5_omni_thinker":
        return OmniOfSmallFilms(sees, watches, hears, tokenizer, chat_template=chat)
    kind = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}[family]
    return kind(sees, tokenizer, watches, chat_template=chat)


def make_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A tiny random model of a family, on the CPU, in fp32."""
    torch.manual_seed(seed)
    config = make_config(family)
    if family == "qwen2_audio":
        return Qwen2AudioForConditionalGeneration(config).eval()
    kind = AutoModelForImageTextToText
    model = kind.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    for param in model.parameters():
        if param.ndim > 1 and not param.any():
            # Gemma 3 begins with features of zero, of which no tower has a gradient.
            torch.nn.init.normal_(param, std=0.1)
    return model


def make_config(family: str) -> PreTrainedConfig:
    """The configuration of a tiny model."""
    ids = dict(zip(SPECIAL, make_tokenizer().convert_tokens_to_ids(list(SPECIAL)), strict=True))
    mrope = {"rope_parameters": MROPE, "rope_scaling": MROPE}
    vision: dict[str, Any] = {**PATCHES, "depth": 2, "num_heads": 2, "hidden_size": 16, "intermediate_size": 24}
    sides = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    tiles: dict[str, Any] = {**sides, "image_size": 16, "patch_size": 4}
    qwen = {
        **{"image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"]},
        **{"vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"]},
    }
    windows = {**vision, "out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]}
    deep = {**vision, "out_hidden_size": 32, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    hears = {
        **{"num_mel_bins": 8, "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2},
        **{"encoder_ffn_dim": 24, "max_source_positions": 50},
    }
    # Values that are not trivial: some experts are chosen by no token of a row.
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
    fields: dict[str, Any] = {
        "qwen2_vl": {
            "text_config": {**TEXT, **mrope},
            "vision_config": {**vision, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
            **qwen,
        },
        "qwen2_5_vl": {
            "text_config": {**TEXT, **mrope},
            "vision_config": {**windows, "tokens_per_second": 2},
            **qwen,
        },
        "qwen3_vl": {"text_config": {**TEXT, **mrope, "head_dim": 8}, "vision_config": deep, **qwen},
        "qwen3_vl_moe": {"text_config": {**TEXT, **mrope, **experts, "head_dim": 8}, "vision_config": deep, **qwen},
        "glm4v": {
            "text_config": {**TEXT, **mrope},
            "vision_config": {**vision, "out_hidden_size": 32, "image_size": 32},
            **{"image_token_id": ids["<|image|>"], "video_token_id": ids["<|video|>"]},
            **{"image_start_token_id": ids["<|begin_of_image|>"], "image_end_token_id": ids["<|end_of_image|>"]},
            **{"video_start_token_id": ids["<|begin_of_video|>"], "video_end_token_id": ids["<|end_of_video|>"]},
        },
        "qwen2_5_omni_thinker": {
            "text_config": {**TEXT, **mrope},
            "vision_config": windows,
            "audio_config": {**hears, "n_window": 10, "output_dim": 32},
            **{f"{kind}_token_index": ids[f"<|{kind}_pad|>"] for kind in ("image", "video")},
            **{"audio_token_index": ids["<|AUDIO|>"], "audio_start_token_id": ids["<|audio_bos|>"]},
            **{"audio_end_token_id": ids["<|audio_eos|>"], "position_id_per_seconds": 5},
            **{name: qwen[name] for name in ("vision_start_token_id", "vision_end_token_id")},
        },
        "gemma3": {
            "text_config": {**TEXT, "head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8}
            | {"layer_types": ["sliding_attention", "full_attention"]},
            "vision_config": {**tiles, "vision_use_head": False, "model_type": "siglip_vision_model"},
            **{"mm_tokens_per_image": 4, "image_token_index": ids["<soft>"]},
            **{"boi_token_index": ids["<boi>"], "eoi_token_index": ids["<eoi>"]},
        },
        "internvl": {
            "text_config": {**TEXT, "model_type": "qwen2"},
            "vision_config": tiles,
            **{"image_token_id": ids["<|image_pad|>"], "image_seq_length": 4},
        },
        "qwen2_audio": {
            "text_config": {**TEXT, "model_type": "qwen2"},
            "audio_config": {**hears, "model_type": "qwen2_audio_encoder"},
            "audio_token_id": ids["<|AUDIO|>"],
        },
    }[family]
    return AutoConfig.for_model(family, **fields)


def told_alone(family: str, document: Encoded) -> dict[str, Any]:
    """What plain transformers is called with for one document, as its processor would say it."""
    tokens_1N = torch.from_numpy(document.tokens_N).long()[None]
    kinds = {"gemma3": "token_type_ids", **dict.fromkeys(("qwen2_audio", "internvl", "qwen2_5_omni_thinker"), None)}
    name = kinds.get(family, "mm_token_type_ids")
    told = {name: torch.from_numpy(document.kinds_N).long()[None]} if name else {}
    arrays = {key: torch.from_numpy(array) for key, array in document.arrays.items()}
    return {"input_ids": tokens_1N, "attention_mask": torch.ones_like(tokens_1N), **told, **arrays}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def film(frames: int, height: int, width: int, seed: int = 0, fps: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    shape = (frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8), np.arange(frames) / fps


def sound(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32)
