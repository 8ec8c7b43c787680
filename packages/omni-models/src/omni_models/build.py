"""From a name to a model without weights: the configuration is read, the modules are laid out on the meta device."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.configuration_utils import PreTrainedConfig

from omni_models.classes import plain_class
from omni_models.omni import OmniModel
from omni_models.parts import OmniConfig
from omni_models.presets import PRESETS
from omni_models.weights import fill_weights


def read_config(source: str, **overrides: object) -> PreTrainedConfig:
    """The configuration of a preset, a local directory or a hub name, with fields overridden.

    Args:
        source: a preset ("tiny", "qwen3-8b", ...), a directory with a config.json, or a hub name ("Qwen/Qwen3-8B").
        overrides: fields of the configuration, such as `num_hidden_layers=2`.

    Raises:
        ValueError: if nothing of that name is found (the nearest preset is named), if an override is no field of this
            configuration, or if its head counts do not divide; all at once.
    """
    config = _find_config(source)
    fields = config.to_dict()
    problems = [f"{source} has no field {name}{_nearest(name, fields)}." for name in overrides if name not in fields]
    fields |= {name: value for name, value in overrides.items() if name in fields}
    if "layer_types" in fields and "layer_types" not in overrides:
        fields["layer_types"] = fields["layer_types"][: fields["num_hidden_layers"]]
    try:
        config = type(config).from_dict(fields)
    except StrictDataclassError as problem:
        problems.append(str(problem))
    problems += head_problems(config)
    if problems:
        raise ValueError(f"the configuration of {source} cannot work:\n" + "\n".join(f"  - {p}" for p in problems))
    return config


def build_model(config: PreTrainedConfig, *, seed: int = 0, device: str = "cpu") -> PreTrainedModel:
    """A causal language model in fp32, in training mode. On "meta" it has shapes only: fill it by `fill_weights`.

    A configuration with a tower for images (`vision_config`) makes a model with that tower, where transformers has one.

    Args:
        config: of any model of transformers that goes on with text, or with images and text; it is copied, not kept.
        seed: of the random weights, which depend on nothing else (see `fill_weights`).
        device: "meta", or where to put the weights.

    Raises:
        ValueError: if transformers knows no model of this type that makes text of text, or of images and text, or if
            the weights are quantised.
    """
    kind = OmniModel if isinstance(config, OmniConfig) else _find_kind(config)
    if kind is None:
        part = next((name for name in ("thinker_config",) if hasattr(config, name)), None)
        remedy = f": take its {part}, which is" if part else ", the only kinds built so far"
        raise ValueError(
            f"model type {config.model_type} is no causal language model, nor one of images and text to text{remedy}."
        )
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"this {config.model_type} is quantised; training starts from weights that are not: "
            "choose an unquantised model."
        )
    try:
        with torch.device("meta"):
            own = type(config).from_dict(config.to_dict())
            model = kind(own) if isinstance(own, OmniConfig) else kind.from_config(own, dtype=torch.float32)
    except (KeyError, AttributeError, TypeError) as problem:
        raise ValueError(
            f"transformers cannot build a {config.model_type} of this configuration: {problem!r}."
        ) from problem
    # A cache is for generation; in training it makes transformers forget where packed documents end.
    model.config.use_cache = False
    model.train()
    if device == "meta":
        return model
    model.to_empty(device=device)
    model.tie_weights()
    return fill_weights(model, None, seed=seed)


def save_config(model: PreTrainedModel, directory: Path, *, eos_id: int | None = None) -> Path:
    """The directory, which now tells plain transformers what `model` is, weights aside. Effect: writes json files.

    Args:
        model: of any kind of transformers; on any device.
        directory: made if it does not exist.
        eos_id: the token that ends a text, for generation; None keeps that of the configuration.
    """
    config = type(model.config).from_dict(model.config.to_dict())
    config.architectures = [plain_class(model).__name__]
    config.use_cache = True
    if eos_id is not None:
        config.eos_token_id = eos_id
    config.save_pretrained(directory)
    GenerationConfig.from_model_config(config).save_pretrained(directory)
    return directory


def head_problems(config: PreTrainedConfig) -> list[str]:
    """What is wrong with the head counts of `config`, in words; empty when they divide. Pure."""
    text = config.get_text_config()
    heads, hidden = getattr(text, "num_attention_heads", None), getattr(text, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(hidden, int):
        return []
    problems = []
    if getattr(text, "head_dim", None) is None and hidden % heads:
        problems.append(
            f"hidden_size={hidden} does not divide by num_attention_heads={heads}: change one, or set head_dim."
        )
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    if isinstance(kv_heads, int) and heads % kv_heads:
        problems.append(
            f"num_attention_heads={heads} does not divide by num_key_value_heads={kv_heads}: "
            f"each key and value head serves the same number of query heads."
        )
    return problems


def _find_kind(config: PreTrainedConfig) -> type[AutoModelForCausalLM | AutoModelForImageTextToText] | None:
    """What of transformers builds a model of this configuration, with the tower that it speaks of."""
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not (sees and getattr(config, "vision_config", None)):
        return AutoModelForCausalLM
    return AutoModelForImageTextToText if sees else None


def _find_config(source: str) -> PreTrainedConfig:
    if source in PRESETS:
        fields = dict(PRESETS[source])
        if fields["model_type"] == OmniConfig.model_type:
            return OmniConfig.from_dict(fields)
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{path} has no config.json, so it is not the directory of a Hugging Face model.")
        try:
            return _load_config(path, local_files_only=True)
        except (OSError, StrictDataclassError) as problem:
            raise ValueError(f"{path} holds no config.json that works: {problem}") from problem
    if path.exists():
        raise ValueError(f"{path} is a file; name the directory that holds config.json.")
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        near = _nearest(source, PRESETS)
        raise ValueError(
            f"there is no model {source!r}: no preset{near}, no directory of that path, "
            f"and a hub name has the form owner/name."
            + ("" if near else f" Presets are {_families(PRESETS)} (omni_models.PRESETS has all).")
        )
    try:
        return _load_config(source)
    except OSError as problem:
        raise ValueError(
            f"the hub gave no configuration for {source!r}{_nearest(source, PRESETS)}. "
            f"Is the name right and the network up? {problem}"
        ) from problem


def _load_config(source: str | Path, **how: bool) -> PreTrainedConfig:
    """What transformers reads, and of composed models, which it does not know, what it would."""
    fields, _ = OmniConfig.get_config_dict(source, **how)
    if fields.get("model_type") == OmniConfig.model_type:
        return OmniConfig.from_dict(fields)
    return AutoConfig.from_pretrained(source, trust_remote_code=False, **how)


def _families(names: Iterable[str]) -> str:
    """The beginnings of names, each once, with dots where there is more than that.

    >>> _families(["tiny", "qwen3-8b", "qwen3-14b"])
    'tiny, qwen3-...'
    """
    return ", ".join(dict.fromkeys(f"{begin}{dash and '-...'}" for begin, dash, _ in (n.partition("-") for n in names)))


def _nearest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
