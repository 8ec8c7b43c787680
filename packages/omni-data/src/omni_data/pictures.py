"""Pictures without a download: one shape of one colour each, on black. Deterministic.

Enough to learn to see and to draw by: what a picture shows can be said in two words, and two words and a place say what
to draw, to the pixel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from omni_data.blob import the_extra
from omni_data.document import Record, Source

COLOURS: Final[Mapping[str, tuple[int, int, int]]] = MappingProxyType(
    {"red": (230, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 230), "yellow": (240, 220, 50)}
)
SHAPES: Final = ("square", "circle", "triangle")
PLACES: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        "": (4, 4),
        " at the top left": (0, 0),
        " at the top right": (0, 8),
        " at the bottom left": (8, 0),
        " at the bottom right": (8, 8),
    }
)
"""Where a shape of 8 pixels is drawn in 16 x 16, by the words for it; in the middle without any."""
DRAWINGS: Final = tuple((colour, shape, place) for place, colour, shape in product(PLACES, COLOURS, SHAPES))
"""All that may be asked to be drawn."""


def draw_shape(colour: str, shape: str, top: int, left: int, *, width: int = 8, size: int = 16) -> NDArray[np.uint8]:
    """(size, size, 3): a shape of `width` x `width` pixels whose corner is at `top` and `left`. Pure.

    Raises:
        ValueError: if there is no such colour or shape, or if it does not fit; all at once.
    """
    problems = [] if colour in COLOURS else [f"there is no colour {colour!r}; there are {', '.join(COLOURS)}."]
    problems += [] if shape in SHAPES else [f"there is no shape {shape!r}; there are {', '.join(SHAPES)}."]
    if not (width > 0 and 0 <= top <= size - width and 0 <= left <= size - width):
        problems.append(f"{width} pixels from top={top}, left={left} do not fit in {size} x {size}.")
    if problems:
        raise ValueError("\n".join(problems))
    down, right = (np.mgrid[0:width, 0:width] + 0.5) / width
    inside = {
        "square": np.ones((width, width), np.bool_),
        "circle": (down - 0.5) ** 2 + (right - 0.5) ** 2 <= 0.25,
        "triangle": abs(right - 0.5) <= down / 2,
    }[shape]
    picture = np.zeros((size, size, 3), np.uint8)
    picture[top : top + width, left : left + width][inside] = COLOURS[colour]
    return picture


@dataclass(frozen=True, slots=True)
class Shapes:
    """Records of `image` (H, W, 3) uint8, `colour`, `shape`, `top` and `left`. Record `i` is a function of the fields
    and `i`, and nothing else."""

    count: int
    size: int
    seed: int

    @property
    def name(self) -> str:
        return f"shapes(seed={self.seed})"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int, /) -> Record:
        random = np.random.default_rng((self.seed, range(self.count)[i]))
        colour, shape = tuple(COLOURS)[random.integers(len(COLOURS))], SHAPES[random.integers(len(SHAPES))]
        top, left = random.integers(0, self.size // 2 + 1, 2).tolist()
        image = draw_shape(colour, shape, top, left, width=self.size // 2, size=self.size)
        return {"image": image, "colour": colour, "shape": shape, "top": top, "left": left}


def synthetic_shapes(*, count: int = 10_000, size: int = 16, seed: int = 0) -> Source[Record]:
    """Pictures of `size` x `size` pixels with a shape of half that, anywhere; with the words for it.

    Raises:
        ValueError: if there are to be none, or they are too small to tell shapes apart.
    """
    if count <= 0 or size < 8:
        raise ValueError(f"count={count} must be positive, and size={size} at least 8.")
    return Shapes(count, size, seed)


@dataclass(frozen=True, slots=True)
class DrawingChats:
    """Chats about shapes: half of them show one and ask what it is, and half ask for a drawing, which is a part of the
    answer. Record `i` is a function of the fields and `i`, and nothing else."""

    count: int
    seed: int
    held_out: bool

    @property
    def name(self) -> str:
        return f"drawings(seed={self.seed}{', held out' if self.held_out else ''})"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int, /) -> Record:
        random = np.random.default_rng((self.seed, self.held_out, range(self.count)[i]))
        if random.integers(2):
            asked = [each for each in DRAWINGS if is_unasked(*each) == self.held_out]
            colour, shape, place = asked[random.integers(len(asked))]
            drawn = {"type": "image", "image": bmp_of(draw_shape(colour, shape, *PLACES[place]))}
            return _chat([{"type": "text", "text": f"Draw a {colour} {shape}{place}"}], [drawn])
        colour, shape = tuple(COLOURS)[random.integers(len(COLOURS))], SHAPES[random.integers(len(SHAPES))]
        places = [at for at in product(range(9), range(9)) if is_unseen(*at) == self.held_out]
        shown = {"type": "image", "image": bmp_of(draw_shape(colour, shape, *places[random.integers(len(places))]))}
        said = [{"type": "text", "text": f"A {colour} {shape}."}]
        return _chat([shown, {"type": "text", "text": "What is this?"}], said)


def builtin_drawings(*, count: int = 4096, seed: int = 0, held_out: bool = False) -> Source[Record]:
    """Chats that show a shape or ask for one, drawn when they are read: records of `messages` with images as bytes.

    What is held out is never in the others: shapes at a fifth of all places are not seen there, and a sixth of what may
    be drawn, whose words are all there in other company, is not asked for.

    Raises:
        ValueError: if there would be none.
    """
    if count < 1:
        raise ValueError(f"count={count} must be at least 1.")
    return DrawingChats(count, seed, held_out)


def is_unseen(top: int, left: int) -> bool:
    """Whether shapes at that place are held out. Pure."""
    return (top + 2 * left) % 5 == 0


def is_unasked(colour: str, shape: str, place: str) -> bool:
    """Whether to draw that is held out. Pure."""
    row, number = list(PLACES).index(place), list(COLOURS).index(colour) * len(SHAPES) + SHAPES.index(shape)
    return number % 6 == row % 6


def bmp_of(picture: NDArray[np.uint8]) -> bytes:
    """A file of a picture (H, W, 3): equal bytes for equal pictures.

    Raises:
        ValueError: if what writes it is not installed.
    """
    with the_extra():
        from PIL import Image
    file = BytesIO()
    Image.fromarray(picture).save(file, "BMP")
    return file.getvalue()


def _chat(asked: list[dict[str, object]], said: list[dict[str, object]]) -> Record:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
