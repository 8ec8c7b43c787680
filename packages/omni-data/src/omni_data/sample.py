"""A document ready to be packed: its tokens, which of them to learn, and what they refer to that is not text. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Long = Literal["split", "left", "right", "drop", "error"]
"""What becomes of a document that is too long: it is split, cut on the left or on the right, left out, or an error."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Dimensions: N tokens.

    Attributes:
        tokens_N: token ids, int32, placeholders of images and sounds included.
        learn_N: which tokens to learn, bool; None is all of them. The label of a token is learnt where that token is.
        media: by the name of the argument that the model calls it, arrays whose first dimension goes along with the
            placeholders, in the order of these; arrays of several samples are joined along it.
    """

    tokens_N: NDArray[np.int32]
    learn_N: NDArray[np.bool_] | None = None
    media: Mapping[str, NDArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens_N)


@dataclass(frozen=True, slots=True)
class Counts:
    """What was read: `documents` of so many `tokens`; `cut` to the longest length or `dropped`, as they were longer;
    `empty` ones, and `bad` ones that could not be read."""

    documents: int = 0
    tokens: int = 0
    cut: int = 0
    dropped: int = 0
    empty: int = 0
    bad: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.cut + other.cut,
            self.dropped + other.dropped,
            self.empty + other.empty,
            self.bad + other.bad,
        )

    def share(self, number: int, shares: int) -> "Counts":
        """The `number`-th of so many shares, counted from one, which are as even as they can be and sum to all of it.

        >>> [Counts(dropped=5).share(number, 3).dropped for number in (1, 2, 3)]
        [2, 2, 1]
        """
        until, before = ([-(-count * n // shares) for count in astuple(self)] for n in (number, number - 1))
        return Counts(*(a - b for a, b in zip(until, before, strict=True)))


def sample_of(tokens: Sequence[int] | NDArray[np.integer], learn: Sequence[bool] | None = None) -> Sample:
    """The sample of these tokens, all of which are learnt, or those that `learn` says.

    Raises:
        ValueError: if `learn` is not as long as `tokens`.
    """
    if learn is not None and len(learn) != len(tokens):
        raise ValueError(f"learn says of {len(learn)} tokens whether to learn them, but there are {len(tokens)}.")
    learn_N = None if learn is None else np.fromiter(learn, np.bool_, len(learn))
    return Sample(np.fromiter(tokens, np.int32, len(tokens)), learn_N)


def part_of(sample: Sample, start: int, stop: int) -> Sample:
    """Tokens `start` to `stop` of a sample.

    Raises:
        ValueError: if that is not all of it and it has media, whose placeholders must stay together.
    """
    if start == 0 and stop >= len(sample):
        return sample
    if sample.media:
        raise ValueError(
            f"a document of {len(sample)} tokens with {' and '.join(sample.media)} cannot be cut: take longer rows "
            "or smaller media, or let packing.long drop such documents."
        )
    learn_N = None if sample.learn_N is None else sample.learn_N[start:stop]
    return Sample(sample.tokens_N[start:stop], learn_N)


def limit_length(sample: Sample, most: int | None, long: Long) -> list[Sample]:
    """The parts of a sample, of at most `most` tokens each, that stay under the rule `long`; none if it is dropped.

    >>> [part.tokens_N.tolist() for part in limit_length(sample_of([1, 2, 3, 4, 5]), 2, "split")]
    [[1, 2], [3, 4], [5]]

    Raises:
        ValueError: if it is too long and that is an error, or it has media, so that it cannot be cut.
    """
    size = len(sample)
    if most is None or size <= most:
        return [sample]
    if long == "error":
        told = f"a document of {size} tokens is longer than the {most} that fit"
        raise ValueError(f"{told}: let packing.long drop, cut or split such ones.")
    if long == "drop":
        return []
    if long == "split":
        return [part_of(sample, start, min(size, start + most)) for start in range(0, size, most)]
    return [part_of(sample, size - most, size) if long == "left" else part_of(sample, 0, most)]
