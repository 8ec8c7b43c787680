"""A model of several senses, composed of plain modules: encoders put features into rows of a foundation, and decoders
read its hidden states. Text, images, films and sounds in; text, image tokens, latents and audio codes out.

It is a model of transformers like any other, so whatever is done to those is done to it: media are encoded by
`get_image_features` and its like, of the kinds that it has; rows are cut where they enter it; its output is the logits
of the foundation, and beside them the losses of decoders.

Dimensions: B rows, s tokens of a row on this rank, H hidden size, F features, or outputs of a decoder; n media.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.generic import ModelOutput

from omni_models.decoders import Decoder
from omni_models.parts import (
    ARGUMENTS,
    DecoderSpec,
    OmniConfig,
    build_part,
    config_problems,
    decoder_specs,
    encoder_specs,
    nearest,
)
from omni_models.towers import ENCODERS

Target = tuple[Tensor, Tensor, Tensor]
"""Of a decoder on this rank: places_F (int64) among the B * s hidden states, its targets (F, ...), and keys_F (int64),
as `route_targets` makes them."""

Ask = tuple[Tensor, Tensor, float]
"""Of a decoder: places_F, as in a `Target`, where it is to make an output, keys_F, and a temperature."""


@dataclass
class OmniOutput(ModelOutput):
    """What a model of several senses gives."""

    logits: Tensor | None = None
    """Of text, as the foundation gives them."""
    hidden_states: Tensor | None = None
    """(B, s, H), the last ones."""
    losses: dict[str, Tensor] | None = None
    """By decoder, summed over its targets on this rank; None if there were none to measure by."""
    samples: dict[str, Tensor] | None = None
    """By decoder, what it makes where it was asked to; None if none was."""


class DecoderPart(nn.Module):
    """A head, whose functions are called as this module is: what is done around calls is done around all of them."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, function: str, *args: Any) -> Tensor:
        """What the function of the head gives."""
        return getattr(self.head, function)(*args)


class OmniModel(PreTrainedModel):
    """See `omni_models.omni`."""

    config: OmniConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    config_class = OmniConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: OmniConfig, parts: Mapping[str, nn.Module] | None = None) -> None:
        """On the device that is the default.

        Args:
            config: as `omni_config` makes it.
            parts: modules to take as they are, weights included, instead of new ones: "foundation",
                "encoders.image.tower", "encoders.image.projector", "decoders.NAME.head".

        Raises:
            ValueError: if the configuration cannot work, if there is no part of a name, if a part cannot be made, or
                if it is none of its kind; all that a look can tell at once.
        """
        super().__init__(config)
        given = dict(parts or {})
        for module in (inner for part in given.values() for inner in part.modules()):
            module._is_hf_initialized = True  # pyright: ignore[reportArgumentType]  So that its weights stay.

        def take(name: str, spec: Any) -> nn.Module:
            return given.pop(name) if name in given else build_part(spec, name)

        problems = config_problems(config)
        encoders, decoders = encoder_specs(config), decoder_specs(config)
        names = {"foundation", *(f"encoders.{k}.{part}" for k in encoders for part in ("tower", "projector"))}
        names |= {f"decoders.{name}.head" for name in decoders}
        problems += [f"there is no part {name!r}{nearest(name, names)}." for name in given if name not in names]
        if problems:
            raise ValueError("these parts do not go together:\n" + "\n".join(f"  - {p}" for p in problems))
        self.encoders = nn.ModuleDict()
        for kind, spec in encoders.items():
            projector = f"encoders.{kind}.projector"
            tower = take(f"encoders.{kind}.tower", spec.tower)
            joined = take(projector, spec.projector) if spec.projector or projector in given else nn.Identity()
            self.encoders[kind] = ENCODERS[kind](spec, tower, joined)
        foundation = given.pop("foundation", None)
        self.foundation = foundation or AutoModelForCausalLM.from_config(config.text_config, dtype=torch.float32)
        self.decoders = nn.ModuleDict()
        for name, spec in decoders.items():
            self.decoders[name] = DecoderPart(take(f"decoders.{name}.head", spec.head))
        if problems := _module_problems(self, decoders):
            raise ValueError("these parts do not go together:\n" + "\n".join(f"  - {p}" for p in problems))
        # One configuration is that of the foundation, whoever looks at it.
        self.config.text_config = self.foundation.config
        self.post_init()
        # transformers looks at models that are children; these are further in, or are modules that say so themselves.
        self._no_split_modules = {
            n for module in self.modules() for n in getattr(module, "_no_split_modules", None) or ()
        }

    def get_input_embeddings(self) -> nn.Module:
        return self.foundation.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.foundation.get_output_embeddings()

    def get_decoder(self) -> nn.Module:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.foundation.get_decoder()

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        decoder_inputs: Mapping[str, Tensor] | None = None,
        decoder_targets: Mapping[str, Target] | None = None,
        decoder_samples: Mapping[str, Ask] | None = None,
        **kwargs: Any,
    ) -> OmniOutput:
        """Logits, and the loss of each decoder.

        Args:
            input_ids: (B, s) int64, with a placeholder for each feature and for each output of a decoder.
            position_ids: as for the foundation.
            attention_mask: likewise.
            decoder_inputs: by decoder, what its tokens in `input_ids` stand for, in their order.
            decoder_targets: by decoder, what it is measured by; all of them, on every rank, or None.
            decoder_samples: by decoder, where it is to make outputs; the same ones on every rank.
            kwargs: media by argument (`pixel_values`, ...), and what else the foundation takes.

        Raises:
            ValueError: if media have no encoder, if a decoder is unknown or is told nothing, or if placeholders are
                not as many as what they stand for.
        """
        told = {
            "decoder_inputs": decoder_inputs,
            "decoder_targets": decoder_targets,
            "decoder_samples": decoder_samples,
        }
        self._refuse_strangers(kwargs, told)
        embeds_BsH = self.get_input_embeddings()(input_ids)
        for kind, part in self.encoders.items():
            media = {name: kwargs.pop(name) for name in ARGUMENTS[kind] if kwargs.get(name) is not None}
            if media:
                found = getattr(part, f"get_{kind}_features")(**media).pooler_output
                embeds_BsH = put(embeds_BsH, input_ids == part.spec.token_id, found, f"{kind}s")
        for name, spec in decoder_specs(self.config).items():
            if spec.feeds and decoder_inputs is not None:
                found = self.decoders[name]("embed", decoder_inputs[name])
                embeds_BsH = put(embeds_BsH, input_ids == spec.token_id, found, f"outputs of {name}")
        told = {"position_ids": position_ids, "attention_mask": attention_mask, **kwargs}
        with _last_hidden(self.get_decoder()) as hidden:
            out = self.foundation(inputs_embeds=embeds_BsH, **told)
        (hidden_BsH,) = hidden
        hidden_TH = hidden_BsH.flatten(0, 1)

        def ask(function: str, told: Mapping[str, tuple[Any, ...]] | None) -> dict[str, Tensor] | None:
            """What decoders make of hidden states: within this call, where their parameters are as they compute."""
            if told is None:
                return None
            parts = ((name, part, told[name]) for name, part in self.decoders.items() if name in told)
            return {name: part(function, hidden_TH.index_select(0, at_F), *rest) for name, part, (at_F, *rest) in parts}

        return OmniOutput(
            logits=out.logits,
            hidden_states=hidden_BsH,
            losses=ask("loss", decoder_targets),
            samples=ask("sample", decoder_samples),
        )

    def _init_weights(self, module: nn.Module) -> None:
        """What a module of yours has to say of its own weights it says in `reset_parameters`, as those of torch do."""
        if not type(module).__module__.startswith(("torch.", "transformers.")) and hasattr(module, "reset_parameters"):
            module.reset_parameters()  # pyright: ignore[reportCallIssue]
        else:
            super()._init_weights(module)

    def _refuse_strangers(self, kwargs: Mapping[str, Any], told: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Raise one `ValueError` with all that no part of this model takes, or that a part lacks."""
        specs = decoder_specs(self.config)
        problems = [
            f"{names[0]} came, but there is no encoder of {kind}s: add one, or leave such samples out."
            for kind, names in ARGUMENTS.items()
            if kind not in self.encoders and kwargs.get(names[0]) is not None
        ]
        wanted = {
            "decoder_inputs": [name for name, spec in specs.items() if spec.feeds],
            "decoder_targets": list(specs),
        }
        for what, own in ((what, own) for what, own in told.items() if own is not None):
            problems += [
                f"{what}: there is no decoder {n!r}{nearest(n, specs)}." for n in sorted(set(own) - set(specs))
            ]
            problems += [
                f"{what} tells nothing of {name}: every decoder is called on every rank, with none if there is none."
                for name in wanted.get(what, [])
                if name not in own
            ]
        if problems:
            raise ValueError("this model cannot take that:\n" + "\n".join(f"  - {p}" for p in problems))


def put(embeds_BsH: Tensor, where_Bs: Tensor, features_FH: Tensor, name: str) -> Tensor:
    """Embedded rows, in which features stand where placeholders were, in their order. Differentiable. Pure.

    Raises:
        ValueError: if there are not as many of the one as of the other; on a GPU torch raises it, later.
    """
    count = where_Bs.sum()
    if where_Bs.is_cuda:
        # Loud without making the host wait; torch has no public name for it.
        torch._assert_async(count == len(features_FH), f"placeholders are not as many as the {name}")
    elif int(count) != len(features_FH):
        raise ValueError(
            f"{int(count)} placeholders stand for {name}, but {len(features_FH)} came: are rows and media of the same "
            "samples, and does no text spell placeholders?"
        )
    return embeds_BsH.masked_scatter(where_Bs[..., None], features_FH.to(embeds_BsH.dtype))


@contextmanager
def _last_hidden(decoder: nn.Module) -> Iterator[list[Tensor]]:
    """While open, the list gets the hidden states (B, s, H) that calling `decoder` gives."""
    found: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output[0])

    handle = decoder.register_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def _module_problems(model: OmniModel, specs: Mapping[str, DecoderSpec]) -> list[str]:
    """What a look at the modules tells."""
    problems = []
    if not isinstance(model.foundation, PreTrainedModel):
        return [f"the foundation is a {type(model.foundation).__name__}: use a causal language model of transformers."]
    if seeing := [k for k in ENCODERS for m in model.foundation.modules() if hasattr(type(m), f"get_{k}_features")]:
        problems.append(
            f"the foundation {type(model.foundation).__name__} encodes {seeing[0]}s itself: take its part for text."
        )
    for name, spec in specs.items():
        head = model.decoders[name].head
        if not isinstance(head, Decoder):
            problems.append(f"the decoder {name}, {type(head).__name__}, lacks loss or sample: give it both.")
        if spec.feeds and not hasattr(head, "embed"):
            problems.append(f"the decoder {name}, {type(head).__name__}, has no embed: add it, or set feeds=False.")
    return problems
