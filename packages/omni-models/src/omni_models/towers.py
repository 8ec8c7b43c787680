"""Encoders of a composed model: a tower and what joins it to the foundation.

A model offers what it has media encoded by as functions of one name for each kind, and is asked which it has by its
classes. So there is a class for each kind here, and a composed model holds those that it needs.
"""

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from omni_models.parts import ARGUMENTS, EncoderSpec


class EncoderPart(nn.Module):
    """A tower and a projector: features of one kind of media."""

    kind = ""

    def __init__(self, spec: EncoderSpec, tower: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.spec, self.tower, self.projector = spec, tower, projector

    def forward(self, **media: Tensor) -> BaseModelOutputWithPooling:
        """Features (F, H), as `pooler_output`, of media by argument of the model."""
        first, *_ = ARGUMENTS[self.kind]
        given = dict(media)
        array = given.pop(first)
        named = {self.spec.arguments.get(name, name): value for name, value in given.items()}
        known = self.spec.arguments.get(first)
        out = self.tower(**{known: array}, **named) if known else self.tower(array, **named)
        if not isinstance(out, Tensor):
            out = getattr(out, self.spec.take)
        features_FH = self.projector(out.flatten(0, -2))
        each = self.spec.features
        if each is not None and len(features_FH) != each * len(array):
            raise ValueError(
                f"the tower of {self.kind}s made {len(features_FH)} features of {len(array)} {self.kind}(s), but "
                f"features={each}: say how many it makes of each."
            )
        return BaseModelOutputWithPooling(pooler_output=features_FH)  # pyright: ignore[reportArgumentType]


class ImagePart(EncoderPart):
    """The encoder of images."""

    kind = "image"

    def get_image_features(self, **media: Tensor) -> BaseModelOutputWithPooling:
        return self(**media)


class VideoPart(EncoderPart):
    """The encoder of films."""

    kind = "video"

    def get_video_features(self, **media: Tensor) -> BaseModelOutputWithPooling:
        return self(**media)


class AudioPart(EncoderPart):
    """The encoder of sounds."""

    kind = "audio"

    def get_audio_features(self, **media: Tensor) -> BaseModelOutputWithPooling:
        return self(**media)


ENCODERS = {part.kind: part for part in (ImagePart, VideoPart, AudioPart)}
"""Of these a model has those of the kinds that it encodes, and with them their functions."""
