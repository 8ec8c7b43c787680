"""Which attention backend computes a model's attention exactly, and why another would not. Pure."""

from typing import Final

import torch
from transformers import PreTrainedModel

from omni_models.fa4 import INSTALL, fa4_problems, find_capability, has_fa4
from omni_models.flex import flex_problems
from omni_models.groups import GROUPED
from omni_models.sdpa import cudnn_problems
from omni_models.support import has_window

BACKENDS: Final = ("fa4", "varlen", "sdpa", "eager")
"""By name, the fastest first."""
ASKED_FOR: Final = ("cudnn", "flex")
"""Those that are taken only when asked for: where they are faster is not measured."""


def choose_attention(
    model: PreTrainedModel,
    device_type: str,
    dtype: torch.dtype,
    *,
    capability: tuple[int, int] | None = None,
    images: bool = False,
) -> str:
    """The fastest backend that computes this model's attention exactly on this device in this dtype.

    `capability` is that of a GPU that is not here, major and minor; left out, it is that of this machine. `images` says
    whether rows have images, whose tokens see each other both ways in some models.
    Pure but for two questions put to this machine: whether FlashAttention-4 is installed, and what its GPU can do.
    """

    def fits(name: str) -> bool:
        return not attention_problems(model, name, device_type, dtype, capability=capability, images=images)

    return next(filter(fits, BACKENDS))


def attention_problems(
    model: PreTrainedModel,
    attend: str,
    device_type: str,
    dtype: torch.dtype,
    *,
    capability: tuple[int, int] | None = None,
    images: bool = False,
) -> list[str]:
    """Why backend `attend` cannot compute this model's attention on this device in this dtype, if it cannot.

    Pure, but for the questions about FlashAttention-4 of `choose_attention`, whose `capability` and `images` these are,
    cuDNN's too.
    """
    text = model.config.get_text_config()
    lacks = [
        what
        for what, asked in (
            ("softcap", attend not in _EVERY and getattr(text, "attn_logit_softcapping", None) is not None),
            ("sinks", attend not in _EVERY and any("sink" in name for name, _ in model.named_parameters())),
            ("dropout", attend != "sdpa" and any(getattr(text, name, None) for name in _DROPOUTS)),
        )
        if asked and attend != "eager"
    ]
    if images and model.config.model_type in GROUPED and attend not in ("eager", "sdpa"):
        lacks.append("groups of tokens that see each other both ways")
    problems = [
        f"{attend} attention has no {what}, which {model.config.model_type} asks for: use eager." for what in lacks
    ]
    if attend == "varlen":
        if device_type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
            problems.append(f"varlen attention needs bf16 or fp16 on CUDA, not {dtype} on {device_type}: use sdpa.")
        for head_dim in sorted({max(dims) for dims in _head_dims(model)}):
            if head_dim > 256 or head_dim % 8:
                problems.append(f"varlen attention needs heads of a multiple of 8 up to 256, not {head_dim}: use sdpa.")
    if attend == "cudnn":
        capability = capability or find_capability(device_type)
        found = [cudnn_problems(dtype, capability, dims, device_type=device_type) for dims in sorted(_head_dims(model))]
        problems += dict.fromkeys(problem for several in found for problem in several)
        if has_window(text):
            problems.append(
                f"cudnn attention has no windows, which {model.config.model_type} asks for: use varlen, or sdpa."
            )
    if attend == "flex":
        problems += flex_problems(device_type)
    if attend == "fa4":
        if not has_fa4():
            problems.append(f"fa4 attention needs flash-attn-4, which is not installed: {INSTALL}.")
        capability = capability or find_capability(device_type)
        found = (fa4_problems(dtype, capability, dims, device_type=device_type) for dims in sorted(_head_dims(model)))
        problems += dict.fromkeys(problem for several in found for problem in several)
    return problems


def _head_dims(model: PreTrainedModel) -> set[tuple[int, int]]:
    """The dims of queries and of values of every attention module that tells; else what the configuration says."""
    found = set()
    for module in model.modules():
        dim = getattr(module, "qk_head_dim", None) or getattr(module, "head_dim", None)
        if "Attention" in type(module).__name__ and isinstance(dim, int):
            found.add((dim, getattr(module, "v_head_dim", None) or dim))
    if found:
        return found
    text = model.config.get_text_config()
    dim = getattr(text, "head_dim", None) or text.hidden_size // getattr(text, "num_attention_heads", 1)
    return {(dim, dim)}


_EVERY = ("fa4", "flex")
"""Backends, beside eager, that know softcap and sinks."""
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")
"""What configurations call the probability of dropping a weight of attention."""
