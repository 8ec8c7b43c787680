"""What a model of several senses is composed of, as data: which encoder makes the features of which placeholders, and
which decoder is trained on which outputs, with which weight.

A part is made of a configuration of transformers, of a class by its import path, or of both; or it is handed over as
a module when the model is made. All of it is in the configuration of the model, so that a directory tells what it is.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Final, Literal

from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.configuration_utils import PreTrainedConfig

from omni_models.encoders import KINDS

ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "image": ("pixel_values", "image_grid_thw"),
    "video": ("pixel_values_videos", "video_grid_thw"),
    "audio": ("input_features", "feature_attention_mask"),
}
"""Arguments of the model, by kind of media."""


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """How a module is made. With neither path nor config it is handed over when the model is made."""

    path: str = ""
    """Of its class, "package.module:Class". Only what can be imported here is: nothing is downloaded and run."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """What the class is called with, by name; values of JSON."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a configuration of transformers, which the class is called with first. Without a path they name a
    `model_type` that `AutoModel` knows."""


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What makes features of one kind of media."""

    token_id: int
    """The placeholder: there is one for each feature."""
    tower: ModuleSpec
    projector: ModuleSpec | None = None
    """From what the tower gives to the width of the foundation; None where it has that."""
    features: int | None = None
    """How many the tower makes of each row of its array. None: as many as grids tell (`spatial_merge_size`)."""
    take: str = "last_hidden_state"
    """Which of several outputs of the tower is taken."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """What the tower calls the arguments of the model. Those not named here keep their names, but for the first, which
    is passed by position."""


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """What is made of hidden states beside text: the hidden state before each of its tokens predicts what that is."""

    token_id: int
    """What stands in rows for each of its outputs."""
    head: ModuleSpec
    """See `omni_models.decoders.Decoder`."""
    weight: float = 1.0
    """Of its mean loss, where that of text has 1."""
    shape: tuple[int, ...] = ()
    """Of one target."""
    dtype: Literal["int64", "float32"] = "int64"
    """Of targets."""
    feeds: bool = True
    """Whether outputs come back into the row by the head's `embed`; else their token's own embedding stands for all."""
    begin_id: int | None = None
    """The token of text after which the outputs begin, in generation."""
    count: int = 0
    """How many outputs there are then."""


class OmniConfig(PreTrainedConfig):
    """Of a foundation (`text_config`, any causal language model), encoders by kind of media, and decoders by name; see
    `omni_config`."""

    model_type = "seed_omni"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012

    text_config: dict | PreTrainedConfig | None = None
    encoders: dict | None = None
    decoders: dict | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        told = {"model_type": "llama"} if self.text_config is None else self.text_config
        self.text_config = AutoConfig.for_model(**told) if isinstance(told, dict) else told
        super().__post_init__(**kwargs)

    # What is counted and placed by the names that other models have for it.
    @property
    def image_token_id(self) -> int | None:
        return _token(self, "image")

    @property
    def video_token_id(self) -> int | None:
        return _token(self, "video")

    @property
    def audio_token_id(self) -> int | None:
        return _token(self, "audio")

    @property
    def media_features(self) -> dict[str, int]:
        """By kind: how many features are made of each row of its array, where that is always the same."""
        return {kind: spec.features for kind, spec in encoder_specs(self).items() if spec.features is not None}

    @property
    def vision_config(self) -> PreTrainedConfig | None:
        """Of the tower of images, or else of films."""
        towers = [spec.tower for kind, spec in encoder_specs(self).items() if kind != "audio"]
        return next((part_config(tower) for tower in towers if tower.config), None)


def omni_config(
    text_config: PreTrainedConfig,
    encoders: Mapping[str, EncoderSpec] | None = None,
    decoders: Mapping[str, DecoderSpec] | None = None,
) -> OmniConfig:
    """The configuration of a model composed of these. Pure.

    Args:
        text_config: of the foundation, any causal language model of transformers.
        encoders: by kind of media: "image", "video", "audio".
        decoders: by a name of yours.

    Raises:
        ValueError: with everything that cannot work.
    """
    config = OmniConfig(
        text_config=text_config,
        encoders={kind: asdict(spec) for kind, spec in (encoders or {}).items()},
        decoders={name: asdict(spec) for name, spec in (decoders or {}).items()},
        tie_word_embeddings=getattr(text_config, "tie_word_embeddings", False),
    )
    if problems := config_problems(config):
        raise ValueError("these parts do not go together:\n" + "\n".join(f"  - {p}" for p in problems))
    return config


def encoder_specs(config: PreTrainedConfig) -> dict[str, EncoderSpec]:
    """The encoders of a configuration, by kind, in alphabetical order; of one of another type none. Pure."""
    found: dict[str, EncoderSpec] = {}
    for kind, fields in sorted((getattr(config, "encoders", None) or {}).items()):
        projector = fields.get("projector")
        made = {"tower": ModuleSpec(**fields["tower"]), "projector": projector and ModuleSpec(**projector)}
        found[kind] = EncoderSpec(**(fields | made))
    return found


def decoder_specs(config: PreTrainedConfig) -> dict[str, DecoderSpec]:
    """The decoders of a configuration, by name, in alphabetical order; of one of another type none. Pure."""
    return {
        name: DecoderSpec(**(fields | {"head": ModuleSpec(**fields["head"]), "shape": tuple(fields.get("shape", ()))}))
        for name, fields in sorted((getattr(config, "decoders", None) or {}).items())
    }


def config_problems(config: OmniConfig) -> list[str]:
    """What is wrong with a composition, in words; empty if nothing is. Pure."""
    encoders, decoders = encoder_specs(config), decoder_specs(config)
    size = config.get_text_config().vocab_size
    tokens = [(f"the encoder of {kind}s", spec.token_id) for kind, spec in encoders.items()]
    tokens += [(f"the decoder {name}", spec.token_id) for name, spec in decoders.items()]
    begins = [(f"the beginning of {n}", s.begin_id) for n, s in decoders.items() if s.begin_id is not None]
    problems = [
        f"there is no kind of media {kind!r}{nearest(kind, KINDS)}: use {', '.join(KINDS)}."
        for kind in encoders
        if kind not in KINDS
    ]
    problems += [
        f"{who} has the token {token}, but the foundation has {size} of them: choose one below."
        for who, token in (*tokens, *begins)
        if not 0 <= token < size
    ]
    owners: dict[int, str] = {}
    for who, token in (*tokens, *begins):
        if token in owners:
            problems.append(f"{owners[token]} and {who} share the token {token}: give each one of its own.")
        owners.setdefault(token, who)
    problems += [f"features={s.features} of {k}s must be at least 1, or None." for k, s in encoders.items() if _none(s)]
    problems += [f"weight={s.weight} of {n} must be at least 0." for n, s in decoders.items() if s.weight < 0]
    problems += [
        f"{name} begins after token {spec.begin_id}, but count={spec.count}: say how many outputs there are."
        for name, spec in decoders.items()
        if spec.begin_id is not None and spec.count < 1
    ]
    problems += [
        f"a decoder cannot be called {name!r}: use letters, digits and underscores, and not text."
        for name in decoders
        if not name.isidentifier() or name == "text"
    ]
    return problems


def part_config(spec: ModuleSpec) -> PreTrainedConfig:
    """The configuration of a part of transformers. Pure.

    Raises:
        ValueError: if transformers knows none of this type.
    """
    fields = dict(spec.config)
    kind = None if not spec.path else getattr(_import_class(spec.path), "config_class", None)
    if isinstance(kind, type) and issubclass(kind, PreTrainedConfig):
        return kind.from_dict(fields)
    if "model_type" not in fields:
        raise ValueError(f"the configuration of a part names no model_type: {', '.join(fields) or 'it is empty'}.")
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def build_part(spec: ModuleSpec, name: str) -> nn.Module:
    """A new module, on the device that is the default, as its class initialises it.

    Args:
        spec: how it is made.
        name: what errors call it.

    Raises:
        ValueError: if there is no such class, if it cannot be made of these, or if the spec says nothing.
    """
    if not spec.path and not spec.config:
        raise ValueError(f"{name} was a module of yours and its class is not told: pass it in parts={{{name!r}: ...}}.")
    if not spec.path:
        return AutoModel.from_config(part_config(spec))
    kind = _import_class(spec.path)
    try:
        return kind(part_config(spec), **spec.args) if spec.config else kind(**spec.args)
    except TypeError as error:
        raise ValueError(f"{name}: {spec.path} cannot be made of {dict(spec.args)}: {error}.") from error


def nearest(name: str, known: Any) -> str:
    """ " (did you mean ...?)" if one of those known is near. Pure."""
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _import_class(path: str) -> type[Any]:
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"{path} cannot be imported: {error}. Install it, or put it on the path of Python.") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{path} is no torch.nn.Module: write package.module:Class.")
    return found


def _token(config: OmniConfig, kind: str) -> int | None:
    spec = (config.encoders or {}).get(kind)
    return spec and spec["token_id"]


def _none(spec: EncoderSpec) -> bool:
    return spec.features is not None and spec.features < 1
