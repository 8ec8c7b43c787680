"""A chat with images, films and sounds to tokens and arrays, through the model's own processor of transformers.

The processor's template renders the chat, with one mark for each medium; the processor turns media into arrays and each
mark into as many placeholders as the model makes features of the medium. What is learnt is decided on the text with the
marks, by whoever decides that for text (`Render`): the tokens it is shown are those with all placeholders, and each of
them lies, as it says, where its mark is.

Dimensions: N tokens, F frames of H x W pixels, T samples of a wave.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers.configuration_utils import PreTrainedConfig

from omni_models.media import TEXT, media_problems, token_kinds

Message = Mapping[str, Any]

_TICKS = 1000
"""Times of frames are told to processors as numbers of a film with so many frames a second."""


class Rendered(Protocol):
    """Tokens, and which of them to learn; None is all."""

    @property
    def tokens_N(self) -> NDArray[np.int32]: ...
    @property
    def learn_N(self) -> NDArray[np.bool_] | None: ...


Render = Callable[[Sequence[Message], Any], Rendered]
"""From messages, and what may be taken for a fast tokenizer with a chat template, to tokens: as `render_chat` does."""


@dataclass(frozen=True, slots=True, eq=False)
class Media:
    """What the parts of a chat that are no text stand for, in their order.

    Attributes:
        images: (H, W, 3) uint8 each.
        videos: frames (F, H, W, 3) uint8 and when they are shown (F,), in seconds, each.
        audios: (T,) float32 each, at the rate of the processor.
    """

    images: Sequence[NDArray[np.uint8]] = ()
    videos: Sequence[tuple[NDArray[np.uint8], NDArray[np.float64]]] = ()
    audios: Sequence[NDArray[np.float32]] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A document with media.

    Attributes:
        tokens_N: token ids, int32, with all placeholders.
        kinds_N: what they are, see `token_kinds`.
        learn_N: which of them to learn, never a placeholder; None if nobody was asked.
        arrays: arguments of the model, by name.
    """

    tokens_N: NDArray[np.int32]
    kinds_N: NDArray[np.uint8]
    learn_N: NDArray[np.bool_] | None
    arrays: Mapping[str, NDArray]


def encode_media(
    processor: Any,
    config: PreTrainedConfig,
    messages: Sequence[Message],
    media: Media,
    *,
    render: Render | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Encoded:
    """The tokens of a chat and the arrays of its media, as the model takes them. Pure.

    Args:
        processor: the model's own, as `AutoProcessor` loads it (without remote code), with a fast tokenizer.
        config: of the model, by which placeholders and features are counted.
        messages: with parts `{"type": "image"}`, `"video"` and `"audio"` in their contents, where media belong.
        media: one for each of these parts.
        render: says what to learn; where a processor does not say what it put for a medium, that must be its mark,
            repeated.
        template_kwargs: more for the template.

    Raises:
        ValueError: if parts and media differ in number, or placeholders and the features that the model will make,
            or if a processor puts something that it does not tell, and `render` asks where its tokens are.
    """
    wanted = _count_parts(messages)
    given = {"image": len(media.images), "video": len(media.videos), "audio": len(media.audios)}
    if wrong := [
        f"{given[kind]} {kind}(s) for {wanted[kind]} part(s)" for kind in given if given[kind] != wanted[kind]
    ]:
        raise ValueError(f"there are {', '.join(wrong)} of the messages: give one for each.")
    reader = _Reader(processor, media, template_kwargs or {})
    text = reader.apply_chat_template(messages, tokenize=False)
    marks = {kind: text.count(getattr(processor, f"{kind}_token", None) or "\0") for kind in given}
    if more := [
        f"{marks[kind]} {kind} marks for {given[kind]} {kind}(s)" for kind in given if marks[kind] > given[kind]
    ]:
        raise ValueError(f"the template writes {', '.join(more)}: does a text of the chat spell one?")
    read = reader.read(text)
    tokens_N = np.asarray(read.tokens, np.int32)
    if problems := media_problems(config, tokens_N, read.arrays):
        raise ValueError("\n".join(problems))
    kinds_N = token_kinds(config, tokens_N)
    learn_N = None
    if render is not None:
        rendered = render(messages, reader)
        if not np.array_equal(rendered.tokens_N, tokens_N):
            raise ValueError("what says what to learn renders this chat to other tokens than the processor does.")
        every_N = np.ones(len(tokens_N), np.bool_) if rendered.learn_N is None else rendered.learn_N
        learn_N = every_N & (kinds_N == TEXT)
    return Encoded(tokens_N, kinds_N, learn_N, read.arrays)


def _count_parts(messages: Sequence[Message]) -> dict[str, int]:
    """How many parts of each kind the messages have."""
    contents = [message.get("content") for message in messages]
    kinds = [part.get("type") for content in contents if isinstance(content, list | tuple) for part in content]
    return {kind: kinds.count(kind) for kind in ("image", "video", "audio")}


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """What a processor makes of a text: tokens, where each is in the text with the marks, if known, and arrays."""

    tokens: list[int]
    offsets: list[tuple[int, int]] | None
    arrays: Mapping[str, NDArray]


@dataclass(frozen=True, slots=True, eq=False)
class _Reader:
    """A processor with media, as a tokenizer of text with one mark for each medium."""

    processor: Any
    media: Media
    template_kwargs: Mapping[str, Any]
    known: dict[str, _Read] = field(default_factory=dict)

    is_fast = True

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        name = self.template_kwargs.get("chat_template") if chat_template is None else chat_template
        templates = self.processor.chat_template
        if isinstance(templates, dict):
            return templates.get("default" if name is None else name, name)
        if name is None and templates is None:
            raise ValueError("the processor has no chat template: name one as template_kwargs={'chat_template': ...}.")
        return templates if name is None else name

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any:
        return self.processor.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(self, conversation: Any, *, tokenize: bool = True, **options: Any) -> Any:
        from transformers.utils.chat_template_utils import render_jinja_template

        options = {**self.template_kwargs, **options}
        masked = options.pop("return_assistant_tokens_mask", False)
        options.pop("return_dict", None)
        template = self.get_chat_template(options.pop("chat_template", None))
        options = {**self.processor.tokenizer.special_tokens_map, **options}
        chat = [{key: value for key, value in message.items() if value is not None} for message in conversation]
        rendered: Any = render_jinja_template(
            [chat], chat_template=template, return_assistant_tokens_mask=masked, **options
        )
        (text,), spans = rendered
        if not tokenize:
            return text
        offsets = self.find(text)
        said = [any(start < stop and a < stop and b > start for a, b in spans[0]) for start, stop in offsets]
        return {"input_ids": self.read(text).tokens, "assistant_masks": said}

    def __call__(self, text: str, **options: Any) -> Any:
        return {"input_ids": self.read(text).tokens, "offset_mapping": self.find(text)}

    def read(self, text: str) -> _Read:
        """The tokens of `text`, once."""
        if text not in self.known:
            self.known[text] = _process(self.processor, text, self.media)
        return self.known[text]

    def find(self, text: str) -> list[tuple[int, int]]:
        """Where each of these tokens is in `text`."""
        if (offsets := self.read(text).offsets) is None:
            raise ValueError(
                f"{type(self.processor).__name__} does not say what it puts into a chat for its media, and that is not "
                "the mark of each repeated, so what to learn cannot be found: encode this chat without render, or "
                "install a newer transformers, if in that this processor says so."
            )
        return offsets


def _process(processor: Any, text: str, media: Media) -> _Read:
    given: dict[str, Any] = {}
    if media.images:
        given |= {"images": [list(media.images)], "images_kwargs": {"input_data_format": "channels_last"}}
    if media.videos:
        how = {"do_sample_frames": False, "input_data_format": "channels_last", "return_metadata": True}
        how["video_metadata"] = [_metadata(frames.shape, times) for frames, times in media.videos]
        given |= {"videos": [[frames for frames, _ in media.videos]], "videos_kwargs": how}
    if media.audios:
        rate = processor.feature_extractor.sampling_rate
        given |= {"audio": list(media.audios), "audio_kwargs": {"sampling_rate": rate}}
    how_text = {"add_special_tokens": False, "return_offsets_mapping": True}
    kind = _tensors_of_films(processor) if media.videos else "np"
    more = {"return_text_replacement_offsets": True, "return_tensors": kind}
    out = dict(processor(text=[text], text_kwargs=how_text, **more, **given))
    (tokens,), (offsets,) = (np.asarray(out.pop(name)).tolist() for name in ("input_ids", "offset_mapping"))
    told = out.pop("text_replacement_offsets", None)
    replaced = _repeated(processor, text, tokens) if told is None else told[0] if len(told) else []
    for name in ("attention_mask", "mm_token_type_ids", "token_type_ids", "video_metadata"):
        out.pop(name, None)
    if "video_second_per_grid" in out:
        # The processor takes all films for ones of two frames a second.
        frames = processor.video_processor.temporal_patch_size
        rates = [_metadata(shown.shape, times).sampled_fps for shown, times in media.videos]
        out["video_second_per_grid"] = [frames / rate for rate in rates]
    arrays = {name: np.asarray(array) for name, array in out.items()}
    return _Read(tokens, None if replaced is None else _before(offsets, replaced), arrays)


def _tensors_of_films(processor: Any) -> str:
    """Of which kind: some compute with films that they were given back, as tensors of the kind that they say."""
    # A processor says so itself, or, as all did once, its arguments do by a name that transformers keeps for itself.
    given = getattr(getattr(processor, "valid_processor_kwargs", None), "_defaults", {})
    own = getattr(processor, "videos_kwargs", None) or {}
    return {**own, **given.get("videos_kwargs", {})}.get("return_tensors", "np")


def _repeated(processor: Any, text: str, tokens: list[int]) -> list[dict[str, tuple[int, int]]] | None:
    """What a processor that does not say put for the marks in `text`, if each is but repeated; None if not. Pure."""
    marks = [getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio")]
    of_token = {processor.tokenizer.convert_tokens_to_ids(mark): mark for mark in marks if mark}
    runs = [of_token[token] * len(list(run)) for token, run in groupby(tokens) if token in of_token]
    anywhere = "|".join(f"(?:{re.escape(mark)})+" for mark in of_token.values())
    spans = [match.span() for match in re.finditer(anywhere, text)] if anywhere else []
    if len(runs) != len(spans):
        return None
    whole, replaced, end = "", [], 0
    for run, (start, stop) in zip(runs, spans, strict=True):
        whole += text[end:start]
        replaced.append({"span": (start, stop), "new_span": (len(whole), len(whole) + len(run))})
        whole, end = whole + run, stop
    again = processor.tokenizer(whole + text[end:], add_special_tokens=False)["input_ids"]
    return replaced if list(again) == tokens else None


def _before(offsets: Sequence[Sequence[int]], replaced: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Offsets into the text with placeholders as such into the text with the marks that they replaced. Pure.

    >>> _before([(0, 1), (1, 3), (3, 5), (5, 6)], [{"span": (1, 2), "new_span": (1, 5)}])
    [(0, 1), (1, 2), (1, 2), (2, 3)]
    """
    found = []
    for start, stop in offsets:
        moved = 0
        for span, new_span in ((r["span"], r["new_span"]) for r in replaced):
            if new_span[0] < stop and start < new_span[1]:
                found.append(tuple(span))
                break
            if new_span[1] <= start:
                moved = span[1] - new_span[1]
        else:
            found.append((start + moved, stop + moved))
    return found


def _metadata(shape: Sequence[int], times_F: NDArray[np.float64]) -> Any:
    """What processors are told of a film whose frames are chosen already."""
    from transformers.video_utils import VideoMetadata

    frames, height, width = shape[:3]
    last = float(times_F[-1] - times_F[0])
    seconds = last * frames / (frames - 1) if last else 1.0
    return VideoMetadata(
        total_num_frames=max(1, round(seconds * _TICKS)),
        fps=float(_TICKS),
        width=width,
        height=height,
        duration=seconds,
        frames_indices=[round(float(time) * _TICKS) for time in times_F],
    )
