"""Whether two sources are the same, told from a few of their documents."""

from collections.abc import Sized
from hashlib import sha256
from typing import Any

from omni_data.document import Source
from omni_data.read import Streamed, first_of

_SAMPLES = 64


def fingerprint(source: Source[Any] | Streamed[Any], *, skip_bad: bool = False) -> str:
    """16 hexadecimal digits that other sources do not share: of its size and 64 documents spread over it.

    A source that moved keeps its fingerprint; one that grew, shrank or has another order does not. A single document
    changed in a large source may go unnoticed. Of a streamed source, it is of the version that it tells of itself, and
    of the first document of 64 parts. Effect: reads those documents.

    >>> from omni_data import Documents
    >>> fingerprint(Documents("a", ["x", "y"])) == fingerprint(Documents("b", ["x", "y"]))
    True

    Args:
        skip_bad: let one that cannot be read count as that, whatever the reason.

    Raises:
        ValueError: if one of them cannot be read, without `skip_bad`.
    """
    sized = isinstance(source, Sized)
    size = len(source) if sized else source.parts
    version = "" if sized else f"{getattr(source, 'version', str)()} {size} parts"
    digest = sha256((version or str(size)).encode())
    for i in spread(size):
        try:
            told = repr(source[i] if sized else first_of(source, i))
        except ValueError:
            if not skip_bad:
                raise
            told = "bad"
        digest.update(sha256(told.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()[:16]


def spread(size: int) -> list[int]:
    """64 of `size` things, spread evenly over them with the first and the last; all, if there are no more. Pure."""
    return sorted({i * (size - 1) // (_SAMPLES - 1) for i in range(_SAMPLES)}) if size else []
