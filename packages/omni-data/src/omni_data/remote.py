"""A copy on this disk of a file that cannot be read at random where it is: one behind a URL, or a compressed one.

It is made once, in a cache folder, under a name of what the file is and of the version that it has. It gets that name
only when it is whole, so a copy that was killed is never taken for one, and ranks that come at the same time either
wait for the first or make the same file. Old versions stay until somebody empties the folder.

The name of a file, in errors as everywhere, does not hold what a URL may keep secret.
"""

import bz2
import lzma
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from os import SEEK_END
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from isal import igzip
from isal.igzip_lib import IsalError

_DRIVERS = {
    **dict.fromkeys(("s3", "s3a"), ("s3fs", "s3")),
    **dict.fromkeys(("gs", "gcs"), ("gcsfs", "gs")),
    **dict.fromkeys(("http", "https"), ("aiohttp", "http")),
}
"""By scheme: the package that reads it, and the extra that brings the package."""

# Of what storage says of a file, what changes when its content does, and only then.
_VERSION = ("size", "etag", "lastmodified", "mtime", "updated", "created", "generation", "versionid", "contentmd5")
_VERSION += ("md5hash", "blobid", "xethash")
_PIECES, _PIECE = 16, 4096
"""Of a file, and bytes of each, by which it is known again."""

_STALE = 3600
"""Seconds without a new byte, after which a copy in the making is taken for that of a process that was killed."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file is.

    Attributes:
        name: what errors call it, without secrets.
        path: as its file system calls it.
        fs: the file system, of `fsspec`; None is this disk.
    """

    name: str
    path: str
    fs: Any = None


def is_url(spec: str) -> bool:
    """Whether `spec` is a URL rather than a path."""
    return "://" in spec


def hide_secrets(url: str) -> str:
    """The URL without a user, password, query or fragment.

    >>> hide_secrets("https://me:pass@host/a.jsonl?token=1"), hide_secrets("s3://bucket/part-?.jsonl")
    ('https://***@host/a.jsonl?***', 's3://bucket/part-?.jsonl')
    """
    url = re.sub(r"(?<=://)[^/]*@", "***@", url)
    # In other schemes than http, a question mark may also be a pattern's.
    return re.sub(r"([?#]).*" if url.startswith("http") else r"(\?)[^/]*[=&].*", r"\1***", url)


def ending_of(place: str) -> tuple[str, str | None]:
    """The ending of a path or URL, and the compression around it.

    >>> ending_of("web/a.JSONL.gz"), ending_of("https://host/a.tar?token=1"), ending_of("a.tgz")
    (('.jsonl', '.gz'), ('.tar', None), ('.tar', '.gz'))
    """
    path = PurePosixPath(re.sub(r"[?#].*", "", place) if is_url(place) else place.replace(os.sep, "/"))
    suffix = path.suffix.lower()
    if suffix == ".tgz":
        return ".tar", ".gz"
    return (Path(path.stem).suffix.lower(), suffix) if suffix in OPENERS else (suffix, None)


def find_remote(url: str, wanted: Callable[[PurePosixPath], bool]) -> list[Place]:
    """The files of a URL, sorted: itself if its ending is one of a file, or those of a pattern or folder that are
    `wanted`. Effect: asks the storage.

    Args:
        wanted: whether a path, relative to the folder, is meant as data.

    Raises:
        ValueError: if there are none, or the storage or its driver is not to be had.
    """
    from fsspec.core import url_to_fs

    name = hide_secrets(url)
    scheme = re.split("://", url, maxsplit=1)[0].lower()
    package, extra = _DRIVERS.get(scheme, (None, None))
    try:
        fs, path = url_to_fs(url)
        fs.invalidate_cache()  # Of listings: the files may have changed since this process saw them.
    except ImportError as error:
        remedy = f"`pip install 'omni-data[{extra}]'` brings {package}" if package else tell_error(error, url)
        raise ValueError(f"{name}: what reads {scheme}:// is not installed; {remedy}.") from None
    except Exception as error:  # noqa: BLE001 A driver raises what it likes, and in it what must not be shown.
        raise ValueError(f"{name}: cannot be opened: {tell_error(error, url)}") from None
    try:
        if any(c in path for c in ("*[" if scheme.startswith("http") else "*?[")):
            found, what = [p for p in fs.glob(path) if not fs.isdir(p)], "file matches this pattern"
        elif wanted(PurePosixPath(re.sub(r"[?#].*", "", path)).relative_to(PurePosixPath(path).parent)):
            found, what = [path], "such file"  # Whether it is there, is seen when it is fetched.
        else:
            inside = fs.find(path)
            found = [p for p in inside if wanted(PurePosixPath(p.removeprefix(path).lstrip("/")))]
            what = "file of a known ending here"
    except Exception as error:  # noqa: BLE001 As above.
        raise ValueError(f"{name}: cannot be listed: {tell_error(error, url)}") from None
    if not found:
        raise ValueError(f"{name}: no {what}.")
    return [Place(name if p == path else hide_secrets(fs.unstrip_protocol(p)), p, fs) for p in sorted(found)]


def fetch(place: Place, cache: Path | None = None) -> Path:
    """The file at `place` on this disk, not compressed: itself, or a copy in `cache`.

    Effect: copies it, unless the cache has this version of it.

    Args:
        cache: a folder; None is `omni-data` next to the caches of the hub.

    Raises:
        ValueError: if it cannot be read or is not whole.
    """
    compression = ending_of(place.name)[1]
    if place.fs is None and compression is None:
        return Path(place.path)
    return _copied(place, _info(place), compression, default_cache() if cache is None else cache)


def version_of(place: Place) -> list[tuple[str, str]]:
    """What changes when the content of a file does, as far as its storage says; of a file of this disk, which may be a
    copy, its size and some pieces of it. Effect: asks, or reads them.

    Raises:
        ValueError: if it cannot be asked.
    """
    info = _info(place)
    return _version(info) if place.fs is not None else [("size", str(info["size"])), ("pieces", _pieces(place))]


def _pieces(place: Place) -> str:
    """A digest of 16 pieces spread over a file."""
    digest = sha256()
    with Path(place.path).open("rb") as file:
        last = max(0, file.seek(0, SEEK_END) - _PIECE)
        for i in range(_PIECES):
            file.seek(last * i // (_PIECES - 1))
            digest.update(file.read(_PIECE))
    return digest.hexdigest()[:16]


def default_cache() -> Path:
    """Where copies are kept unless the caller says where: in the folder of the hub's caches (HF_HOME)."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME).expanduser() / "omni-data"


def _copied(place: Place, info: Mapping[str, Any], compression: str | None, folder: Path) -> Path:
    from filelock import FileLock

    scope = "" if place.fs is None else place.fs.to_json(include_password=False)
    digest = sha256(repr((scope, place.path, _version(info))).encode()).hexdigest()[:32]
    target = folder / f"{digest}-{PurePosixPath(re.sub(r'[?#].*', '', place.name)).name[-100:]}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The lock only saves work: on a disk that has none, the last to finish replaces an equal file.
    with FileLock(folder / f".{digest}.lock"):
        if target.exists():
            return target
        for left in folder.glob(f".{digest}.*.part"):
            if time.time() - max(p.stat().st_mtime for p in (left, *left.iterdir())) > _STALE:
                shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{digest}.", suffix=".part") as making:
            whole = Path(place.path)
            if place.fs is not None:
                whole = _download(place, info.get("size"), Path(making) / "raw")
            if compression is not None:
                whole = _decompress(place, whole, compression, Path(making) / "whole")
            whole.replace(target)
    return target


def _info(place: Place) -> Mapping[str, Any]:
    """What the storage says of a file. Effect: asks it."""
    try:
        if place.fs is not None:
            return place.fs.info(place.path)
        stat = Path(place.path).stat()
    except FileNotFoundError:
        raise ValueError(f"{place.name}: no such file.") from None
    except Exception as error:  # noqa: BLE001 As above.
        raise ValueError(f"{place.name}: cannot be read: {tell_error(error, place.path)}") from None
    return {"size": stat.st_size, "mtime": stat.st_mtime_ns}


def _version(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    return sorted((key, str(value)) for key, value in info.items() if _plain(key) in _VERSION)


def _plain(key: str) -> str:
    """The name of a fact, as different storages spell it."""
    return re.sub("[^a-z0-9]", "", key.lower())


def _download(place: Place, size: int | None, to: Path) -> Path:
    try:
        place.fs.get_file(place.path, str(to))
    except Exception as error:  # noqa: BLE001 As above.
        raise ValueError(f"{place.name}: cannot be copied here: {tell_error(error, place.path)}") from None
    if size is not None and to.stat().st_size != size:
        raise ValueError(f"{place.name}: {to.stat().st_size} of {size} bytes came. Try again.")
    return to


def _decompress(place: Place, path: Path, compression: str, to: Path) -> Path:
    try:
        with OPENERS[compression](path) as file, to.open("wb") as out:
            shutil.copyfileobj(file, out, 1 << 20)
    except BROKEN as error:
        raise ValueError(f"{place.name}: cannot be decompressed as {compression}: {error}") from None
    return to


def _open_zst(file: Any) -> Any:
    # Of the readers of zstd at hand, this one reads all frames of a file, and says when the last one is cut.
    import pyarrow as pa

    raw = pa.OSFile(str(file)) if isinstance(file, Path) else pa.PythonFile(file, "r")
    return pa.CompressedInputStream(raw, "zstd")


BROKEN: Any = (OSError, EOFError, IsalError, lzma.LZMAError)
"""What reading a file raises where it is cut, or damaged."""

OPENERS: Mapping[str, Callable[[Any], Any]] = {
    ".gz": igzip.open,
    ".zst": _open_zst,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
"""By compression: the content of a file that is so compressed, given as a path or a binary file."""


def tell_error(error: Exception, url: str) -> str:
    """What an error says, without the secrets of `url`."""
    parts = urlsplit(url)
    words = [parts.password, parts.username, parts.query, parts.fragment]
    words += [value for pair in parts.query.split("&") if len(value := pair.partition("=")[2]) > 3]
    text = re.sub(r"(?<=://)[^/\s]*@", "***@", str(error))
    for word in filter(None, words):
        text = text.replace(word, "***").replace(unquote(word), "***")
    return f"{type(error).__name__}: {text}"
