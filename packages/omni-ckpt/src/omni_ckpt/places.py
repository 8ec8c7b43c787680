"""Where files are: on a disk, or in any storage that fsspec knows, by a URL. Effect: disk or network.

A place is a path, of `pathlib` for a disk and of `universal_pathlib` for a URL ("s3://bucket/run", "gs://...",
"memory://..."), which has the same methods. What differs is here: object storage has no rename that is one act, and
nothing to flush.

The methods that say whether something is there take a request that failed for "no". The functions here do not: nothing
is there if the disk or the storage says so, and anything else that goes wrong is an OSError that names the place.
"""

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

ABSENT: Final = (FileNotFoundError, NotADirectoryError)
"""What is raised where nothing is."""
_DISKS: Final = ("file", "local")
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_KINDS: Final = (*ABSENT, PermissionError, TimeoutError, OSError)
_KIND_OF: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "directory"}


def as_place(where: str | Path) -> Path:
    """`where` as a place: a directory, a file:// URL too, as an absolute path, another URL as a path of its storage.

    Raises:
        ValueError: if it is a URL of no known storage, has a query or a pattern in it, or what reads it is not
            installed.
    """
    if isinstance(where, str) and "://" in where:
        return _at_url(where)
    if not isinstance(where, str | Path):
        return Path(_name(where)).absolute() if where.protocol in _DISKS else where
    if _URL.match(str(where)):
        raise ValueError(f"{where} was a URL, which a Path has spoilt: give it as a string, with its two slashes.")
    return Path(where).absolute()


def is_local(place: Path) -> bool:
    """Whether `place` is on a disk. Pure."""
    return isinstance(place, Path)


@contextmanager
def asking(place: Path) -> Iterator[None]:
    """While open, what goes wrong is raised as an OSError that names `place`, of the same kind and errno."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and is_local(place):
            raise
        if error.errno is not None:
            raise OSError(error.errno, error.strerror, str(place)) from error
        raise next(kind for kind in _KINDS if isinstance(error, kind))(f"{place}: {error}") from error
    except Exception as error:
        # The libraries of storages have errors of their own, of any kind: a ValueError would pass for damage.
        raise OSError(f"{place}: {type(error).__name__}: {error}") from error


def is_there(place: Path) -> bool:
    """Whether anything is at `place`."""
    return _kind_and_size(place)[0] is not None


def is_folder(place: Path) -> bool:
    """Whether a directory is at `place`."""
    return _kind_and_size(place)[0] == "directory"


def size_of(place: Path) -> int | None:
    """Bytes of the file at `place`; None if no file is there."""
    kind, size = _kind_and_size(place)
    return size if kind == "file" else None


def entries(place: Path) -> list[Path]:
    """What is in the directory `place`, in order of name; nothing if there is none."""
    try:
        with asking(place):
            if is_local(place):
                return sorted(place.iterdir())
            names = _storage(place).ls(_name(place), detail=False)
    except ABSENT:
        return []
    # Storage may name the directory itself, too.
    inside = {name.rstrip("/") for name in names} - {_name(place).rstrip("/")}
    return [place / name for name in sorted(name.rpartition("/")[2] for name in inside)]


def read_bytes(place: Path) -> bytes:
    """What is in the file `place`."""
    with asking(place), place.open("rb") as stream:
        return stream.read()


def sync(place: Path) -> None:
    """Wait until `place` is on the device: the bytes of a file, or the names in a directory. Storage has it already."""
    if not is_local(place):
        return
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_file(place: Path) -> None:
    """Delete the file `place`, if it is there."""
    if is_local(place):
        place.unlink(missing_ok=True)
    elif is_there(place):
        with asking(place):
            _storage(place).rm_file(_name(place))


def move_file(place: Path, to: Path) -> None:
    """Give the file `place` the name `to`."""
    if is_local(place):
        place.rename(to)
        return
    with asking(place):
        _storage(place).cp_file(_name(place), _name(to))
        _storage(place).rm_file(_name(place))


def remove(place: Path) -> None:
    """Delete the directory `place` and all in it."""
    if is_local(place):
        shutil.rmtree(place)
        return
    with asking(place):
        if files := _files_below(place):
            _storage(place).rm(files)
    if is_there(place):  # Where directories are more than a part of names.
        with asking(place):
            _storage(place).rm(_name(place), recursive=True)


def copy(place: Path, to: Path, *, last: str) -> None:
    """Copy all that is in the directory `place` of a storage into `to`, and the file `last` of it at the end."""
    with asking(place):
        old, new = _name(place).rstrip("/"), _name(to).rstrip("/")
        names = [file.removeprefix(old) for file in _files_below(place)]
        for batch in ([n for n in names if n != f"/{last}"], [n for n in names if n == f"/{last}"]):
            _storage(place).copy([old + n for n in batch], [new + n for n in batch], on_error="raise")


def _at_url(where: str) -> Path:
    protocol, _, rest = where.partition("://")
    if protocol in _DISKS:
        return Path(rest).absolute()
    try:
        from fsspec import available_protocols, get_filesystem_class
        from upath import UPath
    except ImportError as error:
        raise ValueError(f"{where} is a URL, for which omni-ckpt[remote] must be installed.") from error
    try:
        get_filesystem_class(protocol or "://")  # Of no name it gives that of a disk.
    except ValueError:
        near = get_close_matches(protocol.lower(), available_protocols(), 1, cutoff=0.5)
        meant = "".join(f" Did you mean {name}://?" for name in near)
        raise ValueError(f"{protocol}:// is no storage that is known here.{meant}") from None
    except ImportError as error:
        raise ValueError(f"{protocol}:// needs a package that is not installed: {error}.") from error
    place: Any = UPath(where)
    if strange := sorted({*"?*["} & {*rest.rpartition("@")[2], *place.path}):
        # Not the URL itself: what follows a question mark is often a key.
        raise ValueError(
            f"a URL of {protocol}:// has {' and '.join(strange)} in it: a place has no query and no pattern. Give keys "
            "and tokens to its storage by the environment, and choose another name."
        )
    return place


def _kind_and_size(place: Path) -> tuple[str | None, int | None]:
    """ "file", "directory" or something else, and bytes; None where nothing is."""
    try:
        with asking(place):
            if is_local(place):
                found = place.stat()
                kind = _KIND_OF.get(stat.S_IFMT(found.st_mode), "other")
                return kind, found.st_size
            info = _storage(place).info(_name(place))
    except ABSENT:
        return None, None
    return info["type"], info["size"]


def _files_below(place: Path) -> list[str]:
    """The files in the directory `place` and below, as the storage names them; fsspec's own walk passes errors over."""
    found, folders = [], [_name(place)]
    while folders:
        for info in _storage(place).ls(folder := folders.pop(), detail=True):
            if info["name"].rstrip("/") != folder.rstrip("/"):
                (folders if info["type"] == "directory" else found).append(info["name"])
    return found


def _storage(place: Path) -> Any:
    """The file system of fsspec that `place` is in; it is asked, and not what it remembers of answers."""
    storage: Any = place.fs  # pyright: ignore[reportAttributeAccessIssue] Of `universal_pathlib`.
    storage.invalidate_cache()
    return storage


def _name(place: Path) -> str:
    return place.path  # pyright: ignore[reportAttributeAccessIssue]
