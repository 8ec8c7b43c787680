"""Documents without a download: English that ships with Python, and made-up tokens. Deterministic."""

from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from typing import Final

import numpy as np

from omni_data.blob import the_extra
from omni_data.document import Documents, Record, Source

_SHORTEST, _LONGEST = 400, 1500  # Characters of a built-in document, about.
_COLOURS: Final = {"red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 70, 220), "yellow": (235, 200, 20)}
_SHAPES: Final = ("circle", "square", "triangle")


def builtin_corpus() -> Source:
    """English prose: the language reference that Python carries for `help()`, in documents of 400 to 1500 characters.

    It is cut at blank lines only, so a paragraph longer than that stays whole. The text is that of the running version
    of Python: another version has other documents.
    """
    # pydoc_data is imported here because its text is half a megabyte that few runs read.
    from pydoc_data.topics import topics

    pieces = (cut_text(topics[name], _SHORTEST, _LONGEST) for name in sorted(topics))
    return Documents("builtin", tuple(chain.from_iterable(pieces)))


def builtin_chats() -> Source[Record]:
    """The same prose as answers to questions for its topics: records of `prompt` and `completion`, in English."""
    from pydoc_data.topics import topics

    records = []
    for name in sorted(topics):
        pieces = cut_text(topics[name], _SHORTEST, _LONGEST)
        for i, piece in enumerate(pieces, 1):
            part = f", part {i} of {len(pieces)}" if len(pieces) > 1 else ""
            records.append({"prompt": f"What does Python's reference say of {name}{part}?", "completion": piece})
    return Documents("builtin", tuple(records))


@dataclass(frozen=True, slots=True)
class PictureChats:
    """Chats about pictures of one coloured shape each. Chat `i` is a function of the fields and `i`, and nothing else.

    Attributes:
        side: of a picture, in pixels, at most; the least is half of it.
    """

    count: int
    side: int
    seed: int

    @property
    def name(self) -> str:
        return "builtin"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int, /) -> Record:
        random = np.random.default_rng((self.seed, range(self.count)[i]))
        pictures = (1, 1, 2, 0)[i % 4]
        shown = [
            (_SHAPES[random.integers(len(_SHAPES))], [*_COLOURS][random.integers(len(_COLOURS))]) for _ in range(2)
        ]
        shown = shown[: pictures or 1]
        sizes = [tuple(map(int, random.integers(self.side // 2, self.side + 1, 2))) for _ in range(pictures)]
        images = [
            {"type": "image", "image": draw_shape(shape, colour, *size)}
            for (shape, colour), size in zip(shown, sizes, strict=False)
        ]
        words = " and ".join(f"a {colour} {shape}" for shape, colour in shown)
        asked = "What is it?" if pictures else f"There is {words}. What is it?"
        said = f"{words[0].upper()}{words[1:]}."
        content = [*images, {"type": "text", "text": asked}]
        return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": said}]}


def builtin_pictures(*, count: int = 4096, side: int = 32, seed: int = 0) -> Source[Record]:
    """Chats with pictures, drawn when they are read: what is there to see, of one picture, of two, or as it is told.

    They are records of `messages` whose parts hold images as bytes.

    Raises:
        ValueError: if there would be none, or they would be too small to see.
    """
    if count < 1 or side < 8:
        raise ValueError(f"count={count} must be at least 1, and side={side} at least 8 pixels.")
    return PictureChats(count, side, seed)


def draw_shape(shape: str, colour: str, height: int, width: int) -> bytes:
    """A BMP of so many pixels, a shape of that colour on white: equal bytes for equal arguments.

    Raises:
        ValueError: if it knows no such shape or colour, or what draws is not installed.
    """
    if shape not in _SHAPES or colour not in _COLOURS:
        raise ValueError(f"{colour} {shape}: known are {', '.join(_SHAPES)} in {', '.join(_COLOURS)}.")
    with the_extra():
        from PIL import Image
    y_H1, x_1W = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    inside_HW = {
        "circle": x_1W**2 + y_H1**2 < 0.6,
        "square": np.maximum(abs(x_1W), abs(y_H1)) < 0.7,
        "triangle": (abs(x_1W) < (y_H1 + 0.8) / 2) & (y_H1 < 0.8),
    }[shape]
    pixels_HW3 = np.where(inside_HW[..., None], _COLOURS[colour], 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(pixels_HW3).save(file, "BMP")
    return file.getvalue()


def cut_text(text: str, shortest: int, longest: int) -> list[str]:
    """The paragraphs of `text`, joined into documents of about `shortest` to `longest` characters.

    A document ends at the first blank line after `shortest` characters, or before a paragraph that would take it past
    `longest`. A short rest at the end joins the last document if there is room.

    >>> cut_text("ab\\n\\ncd\\n\\nef\\n", shortest=4, longest=10)
    ['ab\\n\\ncd\\n', 'ef\\n']
    """
    documents: list[str] = []
    current = ""
    for paragraph in filter(str.strip, text.split("\n\n")):
        piece = paragraph.strip("\n") + "\n"
        joined = f"{current}\n{piece}" if current else piece
        if current and (len(current) >= shortest or len(joined) > longest):
            documents.append(current)
            joined = piece
        current = joined
    if documents and len(current) < shortest and len(documents[-1]) + 1 + len(current) <= longest:
        documents[-1] += f"\n{current}"
    elif current:
        documents.append(current)
    return documents


@dataclass(frozen=True, slots=True)
class SyntheticDocuments:
    """Token documents with log-normal lengths. Document `i` is a function of the fields and `i`, and nothing else.

    Attributes:
        median, sigma: of the lengths in tokens; `sigma` is the deviation of their logarithm.
    """

    vocab_size: int
    count: int
    median: float
    sigma: float
    seed: int

    @property
    def name(self) -> str:
        return f"synthetic(seed={self.seed})"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int, /) -> list[int]:
        random = np.random.default_rng((self.seed, range(self.count)[i]))
        length = max(1, round(self.median * float(np.exp(self.sigma * random.standard_normal()))))
        first, stride = random.integers(0, self.vocab_size), random.integers(1, 8)
        return ((first + stride * np.arange(length)) % self.vocab_size).tolist()


def synthetic_documents(
    *, vocab_size: int = 256, count: int = 10_000, median: float = 512.0, sigma: float = 1.0, seed: int = 0
) -> Source:
    """Made-up documents for tests and benchmarks: each counts upward in a stride of its own, which a model can learn.

    Raises:
        ValueError: if a size is not positive.
    """
    sizes = {"vocab_size": vocab_size, "count": count, "median": median}
    if bad := [f"{name}={size}" for name, size in sizes.items() if size <= 0]:
        raise ValueError(f"{', '.join(bad)} must be positive.")
    return SyntheticDocuments(vocab_size, count, median, sigma, seed)
