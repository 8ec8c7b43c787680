"""Storage for tests: files of this machine that are on no disk as omni_ckpt sees it, at URLs "shelf:///tmp/run".

Several processes see it, and each of its requests can fail or kill. As in object storage, a file is there from the
moment that its writing ends, a directory is there while a file is below it, and whether something is there is answered
with no by a request that fails.
"""

import io
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
from fsspec import AbstractFileSystem
from upath import UPath
from upath.registry import register_implementation


class ShelfPath(UPath):
    """A place in it."""


class Shelf(AbstractFileSystem):
    """Its file system."""

    protocol = "shelf"
    struck: Callable[[str, str], None] = staticmethod(lambda what, path: None)
    """Called with each request before it is done."""

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        self.struck("info", path)
        return self._info(self._strip_protocol(path))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        self.struck("ls", path)
        where = Path(self._strip_protocol(path))
        there = [where] if where.is_file() else [p for p in where.iterdir() if holds_files(p)]
        if not there:
            raise FileNotFoundError(path)
        return [self._info(str(p)) if detail else str(p) for p in there]

    def rm_file(self, path: str) -> None:
        self.struck("rm", path)
        if not Path(path).is_dir():
            Path(path).unlink()

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        self.struck("cp", path1)
        put(Path(self._strip_protocol(path2)), Path(self._strip_protocol(path1)).read_bytes())

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """There are none before there are files."""

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "wb":
            return _Written(Path(path), self.struck)
        self.struck("get", path)
        return Path(path).open(mode)

    def _info(self, path: str) -> dict[str, Any]:
        if not holds_files(Path(path)):
            raise FileNotFoundError(path)
        kind = "directory" if Path(path).is_dir() else "file"
        return {"name": path, "type": kind, "size": Path(path).stat().st_size if kind == "file" else 0}


class _Written(io.BytesIO):
    """A file that is there once it is closed."""

    def __init__(self, path: Path, struck: Callable[[str, str], None]) -> None:
        super().__init__()
        self.path, self.struck = path, struck

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            self.struck("put", str(self.path))
            put(self.path, content)


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"..{path.name}.{uuid4().hex}")
    temporary.write_bytes(content)
    temporary.replace(path)


def holds_files(path: Path) -> bool:
    return path.is_file() if not path.is_dir() else any(files for _, _, files in os.walk(path))


def add_storage() -> None:
    """Let URLs "shelf://..." be places. Effect: registers it, once in a process."""
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    register_implementation("shelf", ShelfPath, clobber=True)


@contextmanager
def requests(strike: Callable[[int, str, str], None] = lambda n, what, path: None) -> Iterator[list[str]]:
    """While open, `strike` is called with each request of this process: its number, what it does, and where.

    Yields what was asked so far.
    """
    asked: list[str] = []

    def count(what: str, path: str) -> None:
        asked.append(f"{what} {path}")
        strike(len(asked) - 1, what, path)

    kept, Shelf.struck = Shelf.struck, staticmethod(count)
    try:
        yield asked
    finally:
        Shelf.struck = staticmethod(kept)


def killed_at(n: int, act: Callable[[], object]) -> bool:
    """Do `act()` in a process that is killed before its n-th request; whether it came so far."""
    child = os.fork()
    if not child:

        def strike(number: int, what: str, path: str) -> None:
            if number == n:
                os.kill(os.getpid(), signal.SIGKILL)

        with requests(strike):
            act()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def forget(root: Path) -> None:
    """Delete the files of the place `root`."""
    shutil.rmtree(str(root).removeprefix("shelf://"), ignore_errors=True)
