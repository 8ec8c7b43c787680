"""What cannot be trained exactly yet, by name and with the reason, before anything starts. Pure: it only looks.

Packed rows need three things of a model: that its attention passes transformers' interface, that what keeps a token
from seeing another is told to the attention function itself, and that nothing else carries memory along a row. Where
one of them is missing the numbers would be wrong without an error, so the model is refused here.
"""

import inspect
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from omni_models.experts import is_experts, per_expert
from omni_models.linear import is_linear
from omni_models.towers import EncoderPart

_RECURRENT = (
    *("Mamba", "GatedDelta", "LinearAttention", "LightningAttention", "Rwkv", "xLSTM", "mLSTM", "KDA", "Rglru"),
    *("ShortConv", "Indexer", "NGram"),
)
"""Parts of the names of layers that carry something along the row beside their attention."""

_BY_TYPE = {
    "doge": "its attention mask depends on the data",
    **dict.fromkeys(
        ("roberta", "camembert", "data2vec-text", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "xmod"),
        "it counts positions from the padding token on, whatever position_ids say",
    ),
    **dict.fromkeys(("kosmos-2", "kosmos-2.5"), "its positions begin behind the padding token, not at 0"),
}
"""Types whose trouble shows in no part of theirs."""


def unsupported(model: PreTrainedModel) -> list[str]:
    """Why `model`, after `use_attention`, cannot be trained on packed rows exactly, in words; empty if it can.

    Args:
        model: of any kind of transformers, before or after, also on the meta device.
    """
    config, text = model.config, model.config.get_text_config()
    inner = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    attentions = [module for module in model.modules() if is_attention(module)]
    recurrent = unsplittable(model)
    chunk = getattr(text, "attention_chunk_size", None)
    reasons = [
        (recurrent, f"{', '.join(recurrent)} carries something from one packed document into the next"),
        (
            not attentions or not all(module._can_set_attn_implementation() for module in inner),
            "it does not call transformers' attention interface",
        ),
        (getattr(config, "is_encoder_decoder", False), "it is an encoder and a decoder"),
        (
            "position_ids" not in inspect.signature(model.forward).parameters,
            "it takes no position_ids, so positions cannot restart in each document",
        ),
        (
            getattr(config, "is_decoder", True) is False and any(not _is_causal(module) for module in attentions),
            "it is an encoder (is_decoder is false): its attention sees the tokens that it would predict",
        ),
        (getattr(text, "use_bidirectional_attention", False), "its attention sees later tokens"),
        (chunk is not None, f"it cuts attention into chunks of {chunk} by a mask, which packed rows do not have"),
        (
            has_window(text) and attentions and not any(_passes_window(module) for module in attentions),
            "it keeps its sliding window in a mask, which packed rows do not have",
        ),
        (config.model_type in _BY_TYPE, _BY_TYPE.get(config.model_type, "")),
    ]
    return [f"{config.model_type} cannot be trained exactly yet: {why}." for holds, why in reasons if holds]


def unsplittable(model: PreTrainedModel) -> tuple[str, ...]:
    """Class names of the layers that carry something along the row where no function of ours can be put. Pure.

    A row of such a model cannot be packed, nor split between ranks.
    """
    # What encodes media for a composed model has no row before it.
    apart = {inner for part in model.modules() if isinstance(part, EncoderPart) for inner in part.modules()}
    return tuple(sorted({type(m).__name__ for m in model.modules() if m not in apart and _is_recurrent(m)}))


def row_problems(model: PreTrainedModel, decoder: nn.Module) -> tuple[str, ...]:
    """Why a row of `model` cannot be cut where it enters `decoder`, in words; empty if it can. Pure."""
    inside = any(is_attention(module) for module in decoder.modules())
    return (
        *(f"{name} carries something along the row beside attention" for name in unsplittable(model)),
        *(() if inside else (f"what {type(model).__name__} calls its decoder holds no attention",)),
    )


def expert_problems(modules: Sequence[nn.Module]) -> tuple[str, ...]:
    """Why the experts in `modules` cannot be spread over ranks, in words; empty if they can. Pure."""
    deaf = sorted({type(module).__name__ for module in modules if not is_experts(module)})
    shared = {
        f"{type(module).__name__}.{name}"
        for module in modules
        if is_experts(module)
        for name, param in module.named_parameters()
        if not any(param is own for own in per_expert(module).values())
    }
    return (
        *(f"{name} does not call transformers' experts interface, the only way to its experts" for name in deaf),
        *(f"{name} belongs to all experts at once" for name in sorted(shared)),
    )


def is_attention(module: nn.Module) -> bool:
    """Whether `module` is one that calls the attention interface."""
    return hasattr(module, "is_causal") or "Attention" in type(module).__name__


def _is_recurrent(module: nn.Module) -> bool:
    """By its name, or by a convolution along the row of its own; convolutions of audio are not along the row."""
    name, parts = type(module).__name__, tuple(module.children())
    convolves = any(isinstance(part, nn.Conv1d) and part.kernel_size[0] > 1 for part in parts) and "Audio" not in name
    # A block may be called after the linear attention in it, which carries for it.
    named = any(part in name for part in _RECURRENT) and not any(is_linear(part) for part in parts)
    return (named or convolves) and not is_linear(module)


def _is_causal(module: nn.Module) -> bool:
    return bool(getattr(module, "is_causal", True))


def has_window(text: PreTrainedConfig) -> bool:
    """Whether some layer of this configuration sees a window only."""
    kinds = getattr(text, "layer_types", None)
    window = getattr(text, "sliding_window", None) is not None and getattr(text, "use_sliding_window", True)
    return bool(window) and (not kinds or "sliding_attention" in kinds)


def _passes_window(module: nn.Module) -> bool:
    """Whether the attention module hands its window to the attention function: read in its source."""
    return any(
        "sliding_window=" in inspect.getsource(base)
        for base in type(module).__mro__
        if base.__module__.startswith("transformers.")
    )
