"""Laws of media in records: all spellings are the same, each place has its own medium, and what is none is named."""

import base64
import io
import json
import tarfile
from pathlib import Path

import pytest

from omni_data import Attached, attached_of, builtin_pictures, open_records, read_image

PNG = b"\x89PNG not really"
CODED = base64.b64encode(PNG).decode()
TEXT = {"type": "text", "text": "What is it?"}
ANSWER = {"role": "assistant", "content": "A cat."}


def asked(*parts, **beside):
    return {"messages": [{"role": "user", "content": list(parts)}, ANSWER], **beside}


SPELLED = {
    "a part": asked({"type": "image", "image": "cat.png"}, TEXT),
    "a part with a path": asked({"type": "image", "path": "cat.png", "image": None}, TEXT),
    "a part with a URL of this disk": asked({"type": "image", "url": "file://cat.png"}, TEXT),
    "OpenAI": asked({"type": "image_url", "image_url": {"url": "cat.png", "detail": "low"}}, TEXT),
    "a list": asked({"type": "image"}, TEXT, images=["cat.png"]),
    "one beside": asked({"type": "image", "text": None}, TEXT, image="cat.png"),
    "a mark": {"messages": [{"role": "user", "content": "<image>What is it?"}, ANSWER], "images": ["cat.png"]},
    "LLaVA": {
        "image": "cat.png",
        "conversations": [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "A cat."}],
    },
    "a pair": {"prompt": "<image>What is it?", "completion": "A cat.", "images": [{"bytes": None, "path": "cat.png"}]},
    "a mark in a part": asked({"type": "text", "text": "<image>What is it?"}, images=["cat.png"]),
}


@pytest.mark.parametrize("name", SPELLED)
def test_all_spellings_are_the_same(name):
    chat, media = attached_of(SPELLED[name], folder=Path("/data"))
    assert chat.messages[0]["content"] == [{"type": "image"}, TEXT]
    assert media == (Attached("image", "/data/cat.png"),)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": PNG},
        {"type": "image", "bytes": PNG},
        {"type": "image", "image": f"data:image/png;base64,{CODED}"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;charset=x;base64,{CODED}"}},
        {"type": "image", "base64": CODED},
        {"type": "image", "image": {"bytes": PNG, "path": "cat.png"}},
        {"type": "input_audio", "input_audio": {"data": CODED, "format": "wav"}},
    ],
    ids=str,
)
def test_bytes_are_bytes_however_they_are_written(part):
    (medium,) = attached_of(asked(part))[1]
    assert medium.blob in (PNG, {"bytes": PNG, "path": "cat.png"})


def test_places_take_their_media_in_order_and_kinds_do_not_mix():
    record = asked(
        {"type": "text", "text": "a<video>b<image>"},
        {"type": "image", "image": "own.png"},
        {"type": "image"},
        images=["1.png", "/2.png"],
        videos=["1.mp4"],
    )
    chat, media = attached_of(record, folder=Path("/d"))
    kinds = [part["type"] for part in chat.messages[0]["content"]]
    assert kinds == ["text", "video", "text", "image", "image", "image"]
    found = [(each.kind, each.blob) for each in media]
    assert found == [("video", "/d/1.mp4"), ("image", "/d/1.png"), ("image", "/d/own.png"), ("image", "/2.png")]


def test_a_text_that_speaks_of_marks_is_a_text_where_no_media_are_beside():
    record = {"question": "What does <image> mean in HTML?", "answer": "Nothing."}
    chat, media = attached_of(record)
    assert (chat.messages[0]["content"], media) == (record["question"], ())


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (asked({"type": "image"}, TEXT), "1 places for images in the messages .* but 0 images beside them"),
        (asked(TEXT, images=["a.png"]), "0 places for images .* but 1 images beside them"),
        (asked({"type": "image", "image": "https://host/a.png"}), "image 0 of message 0: .* download it before"),
        (asked({"type": "image", "image": 7}), r"image 0 of message 0: 7 \(int\) is no medium: give a path"),
        (asked({"type": "video", "video": ["1.png", "2.png"]}), r"video 0 of message 0: .*\(list\) is no medium"),
        (asked({"type": "image", "image": "data:image/png;base64,%"}), "is not base64"),
        ({"text": "no chat"}, "no conversation: fields are 'text'"),
    ],
)
def test_what_is_none_is_named(record, told):
    with pytest.raises(ValueError, match=told):
        attached_of(record)


def test_samples_of_a_tar_have_their_members(tmp_path):
    chat = {"question": "<image> or <image>?", "answer": "Yes."}
    named = {**chat, "images": ["a.1.png", "0.png"]}
    members = {"a.0.png": b"0", "a.1.png": b"1", "a.json": json.dumps(chat), "b.0.png": b"0", "b.JPG": b"1"}
    members |= {"b.json": json.dumps(chat), "c.0.png": b"0", "c.1.png": b"1"}
    members |= {"c.json": json.dumps(named | {"images": ["c.1.png", "0.png"]})}
    with tarfile.open(tmp_path / "chats.tar", "w") as tar:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = [attached_of(record)[1] for record in open_records(str(tmp_path / "chats.tar"))]
    assert [[each.blob["bytes"] for each in media] for media in found] == [[b"0", b"1"], [b"0", b"1"], [b"1", b"0"]]
    assert found[0][0].blob["path"] == "a.0.png"


def test_built_in_pictures_show_what_is_said_of_them():
    source = builtin_pictures(count=40)
    counts = set()
    for i in range(40):
        chat, media = attached_of(source[i])
        counts.add(len(media))
        for each in media:
            height, width, _ = read_image(each.blob).shape
            assert min(height, width) >= 16 and max(height, width) <= 32
            assert read_image(each.blob).std() > 10, "something is there"
        said = chat.messages[1]["content"]
        assert said.count(" and ") == (len(media) == 2)
        if not media:
            assert said[2:-1] in chat.messages[0]["content"][0]["text"]
    assert counts == {0, 1, 2} and repr(source[3]) == repr(builtin_pictures()[3])
    with pytest.raises(ValueError, match="count=0 must be at least 1"):
        builtin_pictures(count=0)
