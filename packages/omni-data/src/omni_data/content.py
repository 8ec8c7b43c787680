"""What a file holds, from any byte on, wherever it is and however it is compressed. It is read in place, not copied."""

from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any

from omni_data.remote import BROKEN, OPENERS, Place, ending_of, tell_error

_CHUNK = 1 << 18

_AT_ONCE = 1 << 15
"""Bytes that are decompressed at a time. So many may be lost before a damage, at most; less is slower."""

_AHEAD = 1 << 21
"""Bytes that are read at a time behind a URL. Every virtual shard has a file open: storages suggest more."""


class Content(RawIOBase):
    """What a file holds. Whatever is wrong with it is a `ValueError` that names it and how far it was read.

    It inherits what a raw file is, because that is what the buffered ones of `io` are made over.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place, self.at = place, 0
        self.compression = ending_of(place.name)[1]
        self.files: list[Any] = []
        try:
            file = Path(place.path) if place.fs is None else place.fs.open(place.path, "rb", block_size=_AHEAD)
            self.files += [] if place.fs is None else [file]
            self.file: Any = OPENERS[self.compression](file) if self.compression else file
            if isinstance(self.file, Path):
                self.file = self.file.open("rb", buffering=0)
            self.files.insert(0, self.file)
        except self._expected() as error:
            raise self._told(error) from None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.compression is None

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            self.at = self.file.seek(offset, whence)
        except self._expected() as error:
            raise self._told(error) from None
        return self.at

    def readinto(self, buffer: Any) -> int:
        try:
            # Of what is compressed, little at once: what was decompressed before a damage is not lost.
            by_piece, size = hasattr(self.file, "read1"), len(buffer)
            read = self.file.read1(min(size, _AT_ONCE)) if by_piece else self.file.read(size)
        except self._expected() as error:
            raise self._told(error) from None
        buffer[: len(read)] = read
        self.at += len(read)
        return len(read)

    def close(self) -> None:
        for file in getattr(self, "files", ()):
            file.close()
        super().close()

    def _expected(self) -> Any:
        """What may be raised: behind a URL, a driver raises what it likes."""
        return BROKEN if self.place.fs is None else Exception

    def _told(self, error: Exception) -> ValueError:
        name = self.place.name
        if isinstance(error, FileNotFoundError):
            return ValueError(f"{name}: no such file.")
        why = str(error) if self.place.fs is None else tell_error(error, self.place.path)
        if self.compression is None:
            return ValueError(f"{name}: cannot be read: {why}; {self.at} bytes of it were.")
        told = f"{name}: cannot be decompressed as {self.compression}: {why}"
        return ValueError(f"{told}; {self.at} bytes of its content came before.")


def open_content(place: Place, start: int = 0) -> BufferedReader:
    """The content of a file, decompressed, from byte `start` on. Effect: opens it; what is compressed is decompressed
    up to there.

    Raises:
        ValueError: if it cannot be read, or is not that long.
    """
    content = Content(place)
    try:
        if content.seekable() and start:
            content.seek(min(start, content.seek(0, 2)))
        skipped = bytearray(_CHUNK)
        while content.at < start and content.readinto(memoryview(skipped)[: start - content.at]):
            pass
        if content.at != start:
            raise ValueError(
                f"{place.name}: its content is {content.at} bytes, and the cursor stands after {start}: it was changed."
            )
    except ValueError:
        content.close()
        raise
    return BufferedReader(content, _CHUNK)
