"""A record with media to a conversation whose parts say where they belong, and what each of them is. Pure.

The conversation has one of the formats of `conversation_of`. A medium is

- a part of a content: `{"type": "image", "image": ...}`, and so "video" and "audio"; or as OpenAI spells it,
  `{"type": "image_url", "image_url": {"url": ...}}` and `{"type": "input_audio", "input_audio": {"data": ...}}`;
- or one of a list beside the messages, `images`, `videos`, `audios` (or `image`, `video`, `audio`), which belong, in
  their order, where there is a part of that type without content, or a mark `<image>`, `<video>`, `<audio>` in a text;
- or a member of a sample of a tar, whose messages are in the member `json`: those with endings of images are `images`.

It is given as a path, a data URL, bytes, or both as `datasets` gives them, `{"bytes": ..., "path": ...}`.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from omni_data.blob import Blob
from omni_data.conversations import Conversation, conversation_of, record_of
from omni_data.remote import is_url
from omni_data.turns import Message

MediumKind = Literal["image", "video", "audio"]
KINDS: Final[tuple[MediumKind, ...]] = get_args(MediumKind)
_SPELLED: Final[Mapping[str, MediumKind]] = {
    **{kind: kind for kind in KINDS},
    **{f"{kind}_url": kind for kind in KINDS},
    **{f"input_{kind}": kind for kind in KINDS},
}
"""The kind of a medium by the type of its part."""
_HELD: Final = ("url", "path", "bytes", "base64", "data")
"""Where a part may keep its content, beside a field that is called as its type or kind is."""
_ENDINGS: Final[Mapping[str, MediumKind]] = {
    **dict.fromkeys(("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"), "image"),
    **dict.fromkeys(("mp4", "mov", "webm", "mkv", "avi", "mpg", "mpeg"), "video"),
    **dict.fromkeys(("wav", "flac", "ogg", "mp3"), "audio"),
}
_MARK: Final = re.compile(r"<(image|video|audio)>")
_DATA: Final = re.compile(r"data:[^,;]*(?:;[^,;]*)*;base64,")


@dataclass(frozen=True, slots=True)
class Attached:
    """A medium of a conversation: what it is, and its bytes or where they are."""

    kind: MediumKind
    blob: Blob


def attached_of(record: object, *, folder: Path | None = None) -> tuple[Conversation, tuple[Attached, ...]]:
    """The conversation of a record, whose parts of media are bare (`{"type": "image"}`), and the media, in their order.

    >>> chat, media = attached_of({"question": "<image>What is it?", "answer": "A cat.", "images": ["cat.png"]})
    >>> chat.messages[0]["content"], media
    ([{'type': 'image'}, {'type': 'text', 'text': 'What is it?'}], (Attached(kind='image', blob='cat.png'),))

    Args:
        record: in one of the forms above. Marks in texts are read as such if any of the lists is there.
        folder: where paths that are not absolute begin.

    Raises:
        ValueError: as `conversation_of`; if there are more or fewer places than media beside the messages; and if a
            medium is none, or is behind a URL. All media that are wrong at once.
    """
    fields = _unpacked(record_of(record))
    chat, beside, problems = conversation_of(fields), _beside(fields), []
    messages, found = [], []
    for i, message in enumerate(chat.messages):
        content, own = _parts_of(message["content"], marked=bool(beside))
        messages.append({**message, "content": content})
        found += [(f"message {i}", kind, given) for kind, given in own]
    for kind in KINDS:
        there, given = sum(each == kind and blob is None for _, each, blob in found), len(beside.get(kind, ()))
        if there != given:
            problems.append(
                f"{there} places for {kind}s in the messages (marks <{kind}>, or parts without content), but {given} "
                f"{kind}s beside them in {kind}s: give each place its own, and each its place."
            )
    left = {kind: iter(given) for kind, given in beside.items()}
    media: list[Attached] = []
    for where, kind, given in found:
        blob = next(left.get(kind, iter(())), None) if given is None else given
        try:
            if blob is not None:
                media.append(Attached(kind, _blob(blob, folder)))
        except ValueError as error:
            problems.append(f"{kind} {len(media)} of {where}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return replace(chat, messages=tuple(messages)), tuple(media)


def _unpacked(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a chat that is a sample of a tar, its members as lists of media; any other record as it is."""
    chat = record.get("json")
    if "__key__" not in record or not isinstance(chat, Mapping):
        return record
    members = {
        ending: {"bytes": content, "path": f"{record['__key__']}.{ending}"}
        for ending, content in sorted(record.items())
        if ending.rpartition(".")[2].lower() in _ENDINGS and isinstance(content, bytes)
    }
    lists: dict[str, list[Any]] = {}
    for ending, content in members.items():
        lists.setdefault(f"{_ENDINGS[ending.rpartition('.')[2].lower()]}s", []).append(content)
    # What names its members by itself says in which order they are, and how often each.
    by_name = members | {content["path"]: content for content in members.values()}
    named = {
        key: [by_name.get(name, name) if isinstance(name, str) else name for name in chat[key]]
        for key in (f"{kind}s" for kind in KINDS)
        if isinstance(chat.get(key), list)
    }
    return {**lists, **chat, **named}


def _beside(record: Mapping[str, Any]) -> dict[MediumKind, Sequence[Any]]:
    """The media beside the messages, by kind."""
    found: dict[MediumKind, Sequence[Any]] = {}
    for kind in KINDS:
        if both := {f"{kind}s", kind} & record.keys():
            name = f"{kind}s" if f"{kind}s" in both else kind
            value = record[name]
            found[kind] = value if isinstance(value, list | tuple) else [value]
    return found


def _parts_of(content: Any, *, marked: bool) -> tuple[Any, list[tuple[MediumKind, Any]]]:
    """The content with bare parts for media, and of each its kind and what the part gives, None if nothing."""
    if isinstance(content, str):
        if not (marked and _MARK.search(content)):
            return content, []
        content = [{"type": "text", "text": content}]
    parts: list[Message] = []
    media: list[tuple[MediumKind, Any]] = []
    for part in ({key: value for key, value in part.items() if value is not None} for part in content):
        kind = _SPELLED.get(part["type"])
        if kind is not None:
            parts.append({"type": kind})
            media.append((kind, _given(part, kind)))
            continue
        for piece, mark in _pieces(part.get("text")) if marked and part["type"] == "text" else ():
            parts += [{"type": "text", "text": piece}] if piece else []
            parts += [{"type": mark}] if mark else []
            if mark:
                media.append((mark, None))
        if not marked or part["type"] != "text":
            parts.append(part)
    return parts, media


def _pieces(text: Any) -> Iterator[tuple[str, MediumKind | None]]:
    """The text up to each mark, with the kind of the mark; of the rest it is None."""
    start = 0
    for mark in _MARK.finditer(str(text or "")):
        yield text[start : mark.start()], _SPELLED[mark[1]]
        start = mark.end()
    yield str(text or "")[start:], None


def _given(part: Mapping[str, Any], kind: MediumKind) -> Any:
    """What a part holds of its medium; None if it holds nothing."""
    for name in (part["type"], kind, f"{kind}_url", *_HELD):
        value = part.get(name)
        if isinstance(value, Mapping) and not {"bytes", "path"} & value.keys():
            value = _given({"type": "", **value}, kind)
        if value is not None:
            return _decoded(value) if name in ("base64", "data") and isinstance(value, str) else value
    return None


def _blob(given: Any, folder: Path | None) -> Blob:
    """What `read_image` and its like take."""
    if isinstance(given, Mapping) and given.get("bytes") is None:
        given = given.get("path")
    if not isinstance(given, str | Path):
        if not isinstance(given, bytes | Mapping):
            raise ValueError(
                f"{given!r:.60} ({type(given).__name__}) is no medium: give a path, a data URL, bytes, or an object "
                "with one of them as 'bytes' or 'path'."
            )
        return given
    text = str(given).removeprefix("file://")
    if data := _DATA.match(text):
        return _decoded(text[data.end() :])
    if is_url(text) or text.startswith("data:"):
        raise ValueError(
            f"{text:.80}: no URL is read while a run trains, but those of base64 data: download it before, and give "
            "its path."
        )
    return text if folder is None else str(folder / text)


def _decoded(text: str) -> bytes:
    """The bytes that base64 spells."""
    try:
        return base64.b64decode(text.partition(";base64,")[2] or text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{text!r:.60} is not base64: {error}.") from None
