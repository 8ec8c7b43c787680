"""Whether two sources are the same, told from a few of their documents."""

from hashlib import sha256
from typing import Any

from omni_data.document import Source

_SAMPLES = 64


def fingerprint(source: Source[Any], *, skip_bad: bool = False) -> str:
    """16 hexadecimal digits that other sources do not share: of its size and 64 documents spread over it.

    A source that moved keeps its fingerprint; one that grew, shrank or has another order does not. A single document
    changed in a large source may go unnoticed. Effect: reads those documents.

    >>> from omni_data import Documents
    >>> fingerprint(Documents("a", ["x", "y"])) == fingerprint(Documents("b", ["x", "y"]))
    True

    Args:
        skip_bad: let one that cannot be read count as that, whatever the reason.

    Raises:
        ValueError: if one of them cannot be read, without `skip_bad`.
    """
    size = len(source)
    chosen = sorted({i * (size - 1) // (_SAMPLES - 1) for i in range(_SAMPLES)}) if size else []
    digest = sha256(str(size).encode())
    for i in chosen:
        try:
            told = repr(source[i])
        except ValueError:
            if not skip_bad:
                raise
            told = "bad"
        digest.update(sha256(told.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()[:16]
