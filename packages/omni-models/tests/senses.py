"""Tiny models that see or hear, and their processors, made by hand: nothing is downloaded."""

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.glm4v.image_processing_glm4v import Glm4vImageProcessor
from transformers.models.glm4v.processing_glm4v import Glm4vProcessor
from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_audio.processing_qwen2_audio import Qwen2AudioProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor

SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>"),
    *("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
)
QWEN = ("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")
GLM = ("<|begin_of_image|><|image|><|end_of_image|>", "<|begin_of_video|><|video|><|end_of_video|>")
TEXT = {
    **{"vocab_size": 288, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **{"pad_token_id": None, "bos_token_id": None, "eos_token_id": 1},
}
PATCHES = {"patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
SEEING = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")


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


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the special tokens of all families."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    return tokenizer


def make_processor(family: str, *, marked: bool = False) -> Any:
    """The processor of a family, for images of 8 x 8 to 64 x 64 pixels, or sounds of a second."""
    tokenizer = make_tokenizer()
    chat = template(*(GLM if family == "glm4v" else QWEN), marked=marked)
    if family == "qwen2_audio":
        hears = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
        return Qwen2AudioProcessor(hears, tokenizer, chat_template=chat)
    size = {"shortest_edge": 8 * 8, "longest_edge": 64 * 64}
    how = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "size": size}
    film = {**how, "size": {"shortest_edge": 8 * 8, "longest_edge": 16 * 64 * 64}}
    if family == "glm4v":
        return Glm4vProcessor(Glm4vImageProcessor(**how), tokenizer, Glm4vVideoProcessor(**film), chat_template=chat)
    if family == "qwen3_vl":
        sees = Qwen3VLVideoProcessor(**film)
        return Qwen3VLProcessor(Qwen2VLImageProcessor(**how), tokenizer, sees, chat_template=chat)
    kind = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}[family]
    return kind(Qwen2VLImageProcessor(**how), tokenizer, Qwen2VLVideoProcessor(**film), chat_template=chat)


def make_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A tiny random model of a family, on the CPU, in fp32."""
    ids = dict(zip(SPECIAL, make_tokenizer().convert_tokens_to_ids(list(SPECIAL)), strict=True))
    mrope = {"rope_parameters": MROPE, "rope_scaling": MROPE}
    vision: dict[str, Any] = {**PATCHES, "depth": 2, "num_heads": 2, "hidden_size": 16, "intermediate_size": 24}
    qwen = {
        **{"image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"]},
        **{"vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"]},
    }
    fields: dict[str, Any] = {
        "qwen2_vl": {
            "text_config": {**TEXT, **mrope},
            "vision_config": {**vision, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
            **qwen,
        },
        "qwen2_5_vl": {
            "text_config": {**TEXT, **mrope},
            "vision_config": {
                **{**vision, "out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]},
                "tokens_per_second": 2,
            },
            **qwen,
        },
        "qwen3_vl": {
            "text_config": {**TEXT, **mrope, "head_dim": 8},
            "vision_config": {
                **{**vision, "out_hidden_size": 32, "deepstack_visual_indexes": [0]},
                "num_position_embeddings": 16,
            },
            **qwen,
        },
        "glm4v": {
            "text_config": {**TEXT, **mrope},
            "vision_config": {**vision, "out_hidden_size": 32, "image_size": 32},
            **{"image_token_id": ids["<|image|>"], "video_token_id": ids["<|video|>"]},
            **{"image_start_token_id": ids["<|begin_of_image|>"], "image_end_token_id": ids["<|end_of_image|>"]},
            **{"video_start_token_id": ids["<|begin_of_video|>"], "video_end_token_id": ids["<|end_of_video|>"]},
        },
        "qwen2_audio": {
            "text_config": {**TEXT, "model_type": "qwen2"},
            "audio_config": {
                **{"num_mel_bins": 8, "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2},
                **{"encoder_ffn_dim": 24, "max_source_positions": 50, "model_type": "qwen2_audio_encoder"},
            },
            "audio_token_id": ids["<|AUDIO|>"],
        },
    }[family]
    config = AutoConfig.for_model(family, **fields)
    torch.manual_seed(seed)
    kind = AutoModelForImageTextToText
    if family == "qwen2_audio":
        from transformers import Qwen2AudioForConditionalGeneration

        return Qwen2AudioForConditionalGeneration(config).eval()
    return kind.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def film(frames: int, height: int, width: int, seed: int = 0, fps: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    shape = (frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8), np.arange(frames) / fps


def sound(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32)
