"""The bytes behind an image, a film or a sound, and what errors call them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

Blob = bytes | str | Path | Mapping[str, Any]
"""Bytes, the path of a file, or both as `datasets` gives them, `{"bytes": ..., "path": ...}`; bytes go before the path,
which then is a name only."""


@contextmanager
def the_extra() -> Iterator[None]:
    """A failing import inside, as a ValueError that names the extra to install."""
    try:
        yield
    except ImportError as error:
        raise ValueError(f"what reads media is not installed ({error}): `pip install 'omni-data[media]'`.") from None


@contextmanager
def open_blob(source: Blob) -> Iterator[tuple[BinaryIO, str]]:
    """The bytes of `source` as a file, and what errors call it. Effect: opens and closes it.

    Raises:
        ValueError: if it is none of what a blob can be, or there is no such file.
    """
    content: object = source
    name = None
    if isinstance(source, Mapping):
        content, name = source.get("bytes"), source.get("path")
        content = name if content is None else content
    if isinstance(content, bytes | bytearray | memoryview):
        yield BytesIO(content), str(name) if name else f"{len(content)} bytes"
    elif isinstance(content, str | Path):
        if not Path(content).is_file():
            raise ValueError(f"{content}: no such file.")
        with Path(content).open("rb") as file:
            yield file, str(content)
    else:
        raise ValueError(
            f"{source!r:.60} ({type(source).__name__}) holds no media: give bytes, a path, or an object with one of "
            "them as 'bytes' or 'path'."
        )


@contextmanager
def decoding(name: str, where: str = "") -> Iterator[None]:
    """Whatever a decoder raises inside, as a ValueError that names what it was decoding."""
    try:
        yield
    except Exception as error:
        # Decoders raise what they like: struct.error, SyntaxError, errors of their own. What is said already stays, and
        # so does that there is no memory left; a decoder says the same, by an error of its own, of a broken header.
        if type(error) is MemoryError or (isinstance(error, ValueError) and str(error).startswith(name)):
            raise
        raise ValueError(f"{name}: {where}cannot be decoded: {type(error).__name__}: {error}") from error
