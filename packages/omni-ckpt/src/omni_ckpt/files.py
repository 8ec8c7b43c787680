"""The files of torch.distributed.checkpoint, in whatever place, and sealed while they are written. Effect: disk.

A seal is made of what was meant to be written, so that what the disk gives back later can be compared with it.
"""

import io
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash
from torch.distributed.checkpoint.filesystem import FileSystem

from omni_ckpt.manifest import Sealed
from omni_ckpt.places import as_place, asking, is_there, move_file


class Files(FileSystem):
    """torch's files, in whatever place: what it asks of paths, asked of places."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        place = as_place(path)  # pyright: ignore[reportArgumentType] torch gives back what it got.
        with asking(place):
            opened = place.open(mode)
        try:
            yield opened  # pyright: ignore[reportReturnType]
        finally:
            with asking(place):  # Storage may send all of it only now.
                opened.close()

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> Any:
        return as_place(path) / suffix  # pyright: ignore[reportArgumentType]

    def init_path(self, path: str | os.PathLike[str]) -> Any:
        return as_place(path)  # pyright: ignore[reportArgumentType]

    def rename(self, path: Any, new_path: Any) -> None:
        move_file(path, new_path)

    def mkdir(self, path: Any) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def exists(self, path: Any) -> bool:
        return is_there(path)

    def rm_file(self, path: Any) -> None:
        path.unlink()


class SealingFiles(Files):
    """Files of which each is sealed while it is written, into `sealed` by name."""

    def __init__(self, before_piece: Callable[[], None]) -> None:
        self.sealed: dict[str, Sealed] = {}
        self.before_piece = before_piece

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Generator[io.IOBase, None, None]:
        with super().create_stream(path, mode) as stream:
            if "w" not in mode:
                yield stream
                return
            writer = _Sealing(stream, as_place(path), self.before_piece)
            yield writer  # pyright: ignore[reportReturnType] It has what torch asks of one.
            self.sealed[path.name] = Sealed(writer.size, writer.hasher.hexdigest())


class _Sealing:
    """A stream that is only ever added to, and what was added."""

    def __init__(self, stream: Any, place: Path, before_piece: Callable[[], None]) -> None:
        self.stream, self.hasher, self.size = stream, xxhash.xxh3_128(), 0
        self.place, self.before_piece = place, before_piece

    def write(self, data: Any) -> int:
        self.before_piece()
        view = memoryview(data).cast("B")
        self.hasher.update(view)
        self.size += view.nbytes
        with asking(self.place):
            self.stream.write(view)
        return view.nbytes

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self.stream.flush()

    def fileno(self) -> int:
        return self.stream.fileno()

    def close(self) -> None:
        with asking(self.place):
            self.stream.close()
