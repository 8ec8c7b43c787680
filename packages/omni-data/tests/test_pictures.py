"""Laws of pictures that are made up: they are what their words say, and depend on their number alone."""

from typing import Any

import numpy as np
import pytest

from omni_data import (
    COLOURS,
    DRAWINGS,
    PLACES,
    SHAPES,
    attached_of,
    builtin_drawings,
    draw_shape,
    read_image,
    synthetic_shapes,
)
from omni_data.pictures import bmp_of, is_unasked


def test_every_picture_is_told_by_its_words_and_its_place() -> None:
    source = synthetic_shapes(count=200, size=16, seed=3)
    assert len(source) == 200
    for record in source:
        made = draw_shape(record["colour"], record["shape"], record["top"], record["left"])
        assert np.array_equal(record["image"], made) and made.dtype == np.uint8 and made.shape == (16, 16, 3)
    assert {(record["colour"], record["shape"]) for record in source} == {(c, s) for c in COLOURS for s in SHAPES}


def test_a_picture_depends_on_its_number_and_the_seed_alone() -> None:
    one, longer, other = synthetic_shapes(count=9), synthetic_shapes(count=90), synthetic_shapes(count=9, seed=1)
    assert all(np.array_equal(one[i]["image"], longer[i]["image"]) for i in range(9))
    assert any(not np.array_equal(one[i]["image"], other[i]["image"]) for i in range(9))
    with pytest.raises(IndexError):
        one[9]


def test_shapes_have_their_colour_and_differ() -> None:
    drawn = {shape: draw_shape("blue", shape, 2, 5) for shape in SHAPES}
    inside = {shape: picture.any(axis=2) for shape, picture in drawn.items()}
    assert all((drawn[shape][inside[shape]] == COLOURS["blue"]).all() for shape in SHAPES)
    assert inside["square"].sum() == 64 > inside["circle"].sum() > inside["triangle"].sum() > 30
    assert inside["square"][2:10, 5:13].all()


def test_what_cannot_be_drawn_is_refused_all_at_once() -> None:
    with pytest.raises(ValueError) as told:
        draw_shape("pink", "star", 9, 0)
    for problem in ("no colour 'pink'; there are red", "no shape 'star'", "8 pixels from top=9, left=0 do not fit"):
        assert problem in str(told.value), problem
    with pytest.raises(ValueError, match="count=0 must be positive, and size=4 at least 8"):
        synthetic_shapes(count=0, size=4)


def told_of(record: Any) -> tuple[str, np.ndarray, bool]:
    """The words for the picture of a chat, the picture, and whether it was drawn."""
    chat, (medium,) = attached_of(record)
    asked, said = (message["content"] for message in chat.messages)
    drawn = said[-1]["type"] == "image"
    return (asked if drawn else said)[-1]["text"], read_image(medium.blob), drawn


@pytest.mark.parametrize("held_out", [False, True])
def test_chats_show_or_ask_for_what_their_words_say(held_out: bool) -> None:
    source = builtin_drawings(count=900, held_out=held_out)
    asked = {
        f"Draw a {c} {s}{p}": draw_shape(c, s, *PLACES[p]) for c, s, p in DRAWINGS if is_unasked(c, s, p) == held_out
    }
    drawings = [told_of(record) for record in source]
    assert {words for words, _, drawn in drawings if drawn} == asked.keys()
    assert all(np.array_equal(picture, asked[words]) for words, picture, drawn in drawings if drawn)
    seen = [(words.removeprefix("A ").removesuffix(".").split(), p) for words, p, drawn in drawings if not drawn]
    assert 350 < len(seen) < 550
    for (colour, shape), picture in seen:
        top, left = (int(np.flatnonzero(picture.any(axis=(2, axis)))[0]) for axis in (1, 0))
        assert (picture[picture.any(axis=2)] == COLOURS[colour]).all()
        assert shape != "square" or np.array_equal(picture, draw_shape(colour, shape, top, left))


def test_what_is_held_out_is_in_no_other_chat_but_its_words_are() -> None:
    others, held_out = ([told_of(record) for record in builtin_drawings(count=600, held_out=h)] for h in (False, True))
    pictures = {(words, picture.tobytes()) for words, picture, _ in others}
    assert not any((words, picture.tobytes()) in pictures for words, picture, _ in held_out)
    said = {word for words, _, _ in others for word in words.split()}
    assert all(word in said for words, _, _ in held_out for word in words.split())
    with pytest.raises(ValueError, match="count=0 must be at least 1"):
        builtin_drawings(count=0)


def test_a_picture_comes_back_from_its_file() -> None:
    picture = draw_shape("red", "circle", 3, 5)
    assert np.array_equal(read_image(bmp_of(picture)), picture)
