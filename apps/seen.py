"""Chats with images, films and sounds as the data of a run: where these are, how large they may be, and how a chat with
them becomes tokens and arrays, by the processor of the model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from chats import check_options, open_chats, parse_options, read_template
from decide import read_merged
from kinds import STREAM, Kind
from processors import PARTS, check_tokens, kinds_of, load_processor, read_processor
from request_chats import ChatConfig
from request_media import MediaConfig
from transformers.configuration_utils import PreTrainedConfig

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
    builtin_pictures,
    mapped,
    read_audio,
    read_image,
    read_video,
    render_chat,
)
from omni_data.chat import find_said
from omni_models import Media, encode_media

FOLDER: Final = "__folder__"
"""The field of a record that says where its paths begin."""
SHARDS: Final = 24
"""Virtual shards: few, since each holds the arrays of a window's images, which are larger than its tokens by thousands.
"""


@dataclass(frozen=True, slots=True, repr=False)
class Folder:
    """Where paths of a record begin. All look alike: a source that moved is the same."""

    path: Path | None

    def __repr__(self) -> str:
        return "Folder()"


def seen(chat: ChatConfig, media: MediaConfig, model: str) -> Kind:
    """Conversations with media in the records of a run of `model`.

    Raises:
        ValueError: if options, the template or limits cannot be meant.
    """
    options = parse_options(chat.options)
    template = read_template(chat.template) if chat.template else None
    check_limits(media)

    def encoder(tokenizer: TextTokenizer, vocab_size: int | None) -> Encode:
        processor, config = load_processor(tokenizer), read_merged(model)
        check_tokens(processor, config, tokenizer.name)
        check_options(options, processor.chat_template)
        return Show(processor, config, media, chat.learn, options)

    shown = {name: getattr(media, name) for name in ("max_pixels", "fps", "max_frames")}
    told = {"chat": json.dumps([chat.learn, options], sort_keys=True), "media": json.dumps(shown)}
    read = partial(read_processor, template=template, max_pixels=media.max_pixels)
    return Kind(partial(open_seen, folder=media.folder), read, encoder, told, media=True, shards=SHARDS)


def check_limits(media: MediaConfig) -> None:
    """Raises `ValueError` if a limit is not positive, with all of them. Pure."""
    limits = {name: getattr(media, name) for name in ("most_pixels", "fps", "max_frames", "max_seconds")}
    if media.max_pixels is not None:
        limits["max_pixels"] = media.max_pixels
    if wrong := [f"--media.{name.replace('_', '-')} {value:g}" for name, value in limits.items() if not value > 0]:
        raise ValueError(f"{', '.join(wrong)}: must be positive.")


def open_seen(spec: str, *, folder: Path | None) -> Source[Record] | Streamed[Record]:
    """The records that `spec` names, and where their paths begin; `builtin` needs no file. Effect: as `open_chats`."""
    if spec == "builtin":
        return builtin_pictures()
    return mapped(open_chats(spec), partial(_put, folder=Folder(folder or folder_of(spec))))


def folder_of(spec: str) -> Path | None:
    """The folder that a source is, or is in; None if it is none of this disk. Effect: looks at the disk."""
    spec = spec.removeprefix(STREAM).removeprefix("file://")
    if "://" in spec or spec.startswith("hf:"):
        return None
    path = Path(spec).expanduser()
    while any(c in str(path) for c in "*?[") and not path.exists():
        path = path.parent
    return path if path.is_dir() else path.parent


def _put(record: Record, *, folder: Folder) -> Record:
    return {**record, FOLDER: folder}


@dataclass(frozen=True, slots=True, eq=False)
class Show:
    """From a record to a sample, by the processor of the model.

    Attributes:
        processor: of transformers.
        config: of the model.
        media: limits.
        learn: what is learnt of a chat.
        options: variables of its template.
    """

    processor: Any
    config: PreTrainedConfig
    media: MediaConfig
    learn: Learn = "assistant"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, record: Record) -> Sample:
        """The sample of a record. Effect: reads the files of its media.

        Raises:
            ValueError: if it is no chat, a medium cannot be read, or there are none of that kind for this model.
        """
        folder = record.get(FOLDER, Folder(None))
        fields = {key: value for key, value in record.items() if key != FOLDER}
        chat, attached = attached_of(fields, folder=folder.path)
        find_said(chat.messages, self.learn)
        self.check_kinds(attached)
        media = self.read(attached)
        tools = list(chat.tools) if chat.tools else None
        how = {"template_kwargs": self.options}
        encoded = encode_media(
            self.processor,
            self.config,
            chat.messages,
            media,
            render=partial(render_chat, tools=tools, learn=self.learn, **how),
            template_kwargs={**self.options, **({"tools": tools} if tools else {})},
        )
        return Sample(encoded.tokens_N, encoded.learn_N, encoded.arrays)

    def check_kinds(self, attached: Sequence[Attached]) -> None:
        """Raises `ValueError` if some are of a kind that the model has no encoder for. Pure."""
        known = kinds_of(self.processor)
        if other := sorted({medium.kind for medium in attached} - set(known)):
            raise ValueError(
                f"{self.config.model_type} has no encoder of {' or '.join(f'{kind}s' for kind in other)}, but of "
                f"{', '.join(f'{kind}s' for kind in known)} alone: leave the chat out, or choose a model that has one."
            )

    def read(self, attached: Sequence[Attached]) -> Media:
        """The decoded media. Effect: reads files. Raises `ValueError` with all that cannot be."""
        limits, problems = self.media, []
        found: dict[str, list[Any]] = {kind: [] for kind in PARTS}
        for medium in attached:
            try:
                if medium.kind == "image":
                    found["image"].append(read_image(medium.blob, most_pixels=limits.most_pixels))
                elif medium.kind == "video":
                    film = read_video(medium.blob, fps=limits.fps, most_frames=limits.max_frames)
                    found["video"].append(film)
                else:
                    rate = self.processor.feature_extractor.sampling_rate
                    found["audio"].append(read_audio(medium.blob, rate=rate, most_seconds=limits.max_seconds))
            except ValueError as problem:
                problems.append(f"{medium.kind}: {problem}")
        if problems:
            raise ValueError("\n".join(problems))
        return Media(found["image"], found["video"], found["audio"])
