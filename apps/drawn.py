"""Chats whose assistant draws as the data of a run: what a user shows goes to an encoder, and what the assistant shows
becomes the outputs of a decoder, by the codes of its patches."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from chats import check_options, parse_options, read_template
from composed import CODES, Composed, load_composed, read_composed
from kinds import Kind
from numpy.typing import NDArray
from request_chats import ChatConfig
from seen import FOLDER, SHARDS, Folder, MediaConfig, check_limits, open_seen

from omni_data import (
    Attached,
    Encode,
    Learn,
    Record,
    Sample,
    Source,
    Streamed,
    TextTokenizer,
    attached_of,
    builtin_drawings,
    read_image,
    render_chat,
)
from omni_data.attached import KINDS
from omni_data.chat import find_said
from omni_data.turns import Message
from omni_models import OmniConfig, count_features, decoder_specs, encoder_specs, sample_problems

Arrays = Mapping[str, NDArray]


def drawn(chat: ChatConfig, media: MediaConfig, config: OmniConfig) -> Kind:
    """Conversations in the records of a run of a composed model.

    Raises:
        ValueError: if options, the template or limits cannot be meant.
    """
    options = parse_options(chat.options)
    template = read_template(chat.template) if chat.template else None
    check_limits(media)

    def encoder(tokenizer: TextTokenizer, vocab_size: int | None) -> Encode:
        composed = load_composed(tokenizer, config)
        check_options(options, composed.tokenizer.chat_template)
        return Draw(composed, media.most_pixels, chat.learn, options)

    shown = {name: getattr(media, name) for name in ("max_pixels", "fps", "max_frames")}
    told = {"chat": json.dumps([chat.learn, options], sort_keys=True), "media": json.dumps(shown)}
    read = partial(read_composed, config=config, template=template, max_pixels=media.max_pixels)
    return Kind(partial(open_drawn, folder=media.folder), read, encoder, told, media=True, shards=SHARDS)


def open_drawn(spec: str, *, folder: Path | None) -> Source[Record] | Streamed[Record]:
    """The records that `spec` names; `builtin` needs no file, nor does `builtin-held-out`, which has others. Effect: as
    `open_seen`."""
    if spec in ("builtin", "builtin-held-out"):
        return builtin_drawings(count=4096 if spec == "builtin" else 64, held_out=spec != "builtin")
    return open_seen(spec, folder=folder)


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """From a record to a sample.

    Attributes:
        composed: what the model reads by.
        most_pixels: of an image.
        learn: what is learnt of a chat.
        options: variables of its template.
    """

    composed: Composed
    most_pixels: int
    learn: Learn = "assistant"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, record: Record) -> Sample:
        """The sample of a record, whose outputs of decoders are learnt where text would be. Effect: reads files.

        Raises:
            ValueError: if it is no chat, or the model has no part for something in it; all such things at once.
        """
        folder = record.get(FOLDER, Folder(None)).path
        chat, attached = attached_of({key: value for key, value in record.items() if key != FOLDER}, folder=folder)
        find_said(chat.messages, self.learn)
        writing = Writing(self.composed, self.most_pixels, folder)
        messages, arrays = writing(chat.messages, attached)
        tools = list(chat.tools) if chat.tools else None
        how: Any = {"tools": tools, "learn": self.learn, "template_kwargs": self.options}
        sample, config = render_chat(messages, self.composed.tokenizer, **how), self.composed.config
        if problems := sample_problems(config, sample.tokens_N, arrays):
            raise ValueError("\n".join(problems))
        shown = [spec.token_id for spec in encoder_specs(config).values()]
        every_N = np.ones(len(sample), np.bool_) if sample.learn_N is None else sample.learn_N
        return Sample(sample.tokens_N, every_N & ~np.isin(sample.tokens_N, shown), arrays)


@dataclass(frozen=True, slots=True, eq=False)
class Writing:
    """From messages with parts to messages of text alone, in which tokens are spelled, and what these stand for.

    Attributes:
        composed: what the model reads by.
        most_pixels: of an image.
        folder: where paths begin.
    """

    composed: Composed
    most_pixels: int
    folder: Path | None = None

    def __call__(
        self, messages: Sequence[Message], attached: Sequence[Attached]
    ) -> tuple[list[Message], dict[str, NDArray]]:
        """The messages as a template for text writes them, and arrays by name, in the order of tokens. Effect: reads
        files.

        Raises:
            ValueError: if a part cannot be read, or the model has none for it; with all such parts.
        """
        left, written, problems = iter(attached), [], []
        found: dict[str, list[NDArray]] = {}
        for i, message in enumerate(messages):
            content, texts = message["content"], []
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for j, part in enumerate(parts):
                medium = next(left) if part["type"] in KINDS else None
                try:
                    text, arrays = self.write(part, medium, says=message["role"] == "assistant")
                except ValueError as problem:
                    problems.append(f"message {i}, part {j}: {problem}")
                    continue
                texts.append(text)
                for name, array in arrays.items():
                    found.setdefault(name, []).append(array)
            written.append({**message, "content": "".join(texts)})
        if problems:
            raise ValueError("\n".join(problems))
        return written, {name: np.concatenate(arrays) for name, arrays in found.items()}

    def write(self, part: Message, medium: Attached | None, *, says: bool) -> tuple[str, Arrays]:
        """A part as text and arrays; `says` tells whether it is the assistant's."""
        decoders = decoder_specs(self.composed.config)
        if medium is not None and medium.kind == "image":
            picture = read_image(medium.blob, most_pixels=self.most_pixels)
            return self.draw(picture) if says else self.show(picture)
        if medium is not None:
            raise ValueError(f"a composed model is not given {medium.kind}s here yet: leave the chat out.")
        if part["type"] in decoders and says:
            return self.take(part["type"], part.get("values"))
        if part["type"] != "text":
            known = ", ".join(["text", "image", *(f"{name} (of the assistant)" for name in decoders)])
            raise ValueError(f"no part of the model takes {part['type']!r} there: there are {known}.")
        text = str(part.get("text") or "")
        if spelled := [token for token in self.placeholders() if token in text]:
            raise ValueError(
                f"its text spells {' and '.join(spelled)}, which stand for what is no text: write it apart."
            )
        return text, {}

    def placeholders(self) -> list[str]:
        """What no text may spell."""
        config = self.composed.config
        specs = [*encoder_specs(config).values(), *decoder_specs(config).values()]
        return [self.composed.spell(spec.token_id) for spec in specs]

    def show(self, picture_HWC: NDArray[np.uint8]) -> tuple[str, Arrays]:
        """An image for the encoder."""
        config = self.composed.config
        if "image" not in encoder_specs(config) or self.composed.image_processor is None:
            raise ValueError(
                "an image is shown, but the model has no encoder of images: leave the chat out, or add one."
            )
        how = {"return_tensors": "np", "input_data_format": "channels_last"}
        made = self.composed.image_processor(images=[picture_HWC], **how)
        arrays = {name: np.asarray(made[name]) for name in ("pixel_values", "image_grid_thw") if name in made}
        ((count,),) = count_features(config, arrays).values()
        return self.composed.spell(encoder_specs(config)["image"].token_id) * count, arrays

    def draw(self, picture_HWC: NDArray[np.uint8]) -> tuple[str, Arrays]:
        """A picture as outputs of the decoder that draws."""
        name = next(iter(self.composed.drawing), None)
        if name is None:
            raise ValueError(
                "an image is drawn by the assistant, but no decoder of the model has codes of pictures: keep them in "
                f"NAME{CODES} beside the tokenizer, by save_vq, or leave the chat out."
            )
        return self.outputs(name, self.composed.encode(name, picture_HWC))

    def take(self, name: str, values: Any) -> tuple[str, Arrays]:
        """Outputs of a decoder as they are given: a file of numpy, or lists of numbers. Effect: reads it."""
        if values is None:
            raise ValueError(f"outputs of {name} have no values: give them as lists, or as the path of an .npy.")
        spec = decoder_specs(self.composed.config)[name]
        try:
            path = isinstance(values, str) and Path(self.folder or ".") / values
            array = np.load(path, allow_pickle=False) if path else np.asarray(values)
            array = array.astype(spec.dtype)
        except (OSError, ValueError, TypeError) as problem:
            raise ValueError(f"values of {name} cannot be read: {problem}") from problem
        if not array.ndim or array.shape[1:] != spec.shape or (spec.begin_id is not None and len(array) != spec.count):
            wanted = [spec.count if spec.begin_id is not None else "any number", *spec.shape]
            raise ValueError(f"values of {name} are of shape {list(array.shape)}, and have to be of {wanted}.")
        return self.outputs(name, array)

    def outputs(self, name: str, values: NDArray) -> tuple[str, Arrays]:
        """Tokens that stand for outputs of a decoder, after the one that begins them."""
        spec = decoder_specs(self.composed.config)[name]
        begin = "" if spec.begin_id is None else self.composed.spell(spec.begin_id)
        return begin + self.composed.spell(spec.token_id) * len(values), {f"{name}_targets": values}
