"""Documents without a download: English that ships with Python, and made-up tokens. Deterministic."""

from dataclasses import dataclass
from itertools import chain

import numpy as np

from omni_data.document import Documents, Record, Source

_SHORTEST, _LONGEST = 400, 1500  # Characters of a built-in document, about.


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
