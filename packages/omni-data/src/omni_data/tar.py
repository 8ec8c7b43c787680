"""Tars of samples, in the convention of webdataset: members that share a name up to its first dot are one record.

    a/0001.jpg  a/0001.json     {"__key__": "a/0001", "jpg": bytes, "json": the parsed value}

One scan of the headers finds every member; a record is then a few seeks. Nothing is unpacked to a disk, so a name is
only a key, whatever it spells.
"""

import tarfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from omni_data.document import Record, record_of
from omni_data.lines import not_utf8, parse_json
from omni_data.read import Unread

KEY = "__key__"

_TEXT = ("txt", "text", "cls")

_AGAIN = "Copy or write it again."
_ONE_OF_EACH = "a sample can have one of each ending"


@dataclass(frozen=True, slots=True, eq=False)
class TarSamples:
    """The samples of a tar, in the order of their first members.

    Attributes:
        keys: of the samples, as UTF-8.
        stops: for each sample, how many members there are up to its end.
        members_N3: for each member, sorted by sample: which of `endings` it has, where its content starts, and its
            size in bytes.
        endings: what comes after the first dot of a name.
        columns: the endings to read; None is all that a sample has.
    """

    name: str
    path: Path
    keys: NDArray[np.bytes_]
    stops: NDArray[np.int64]
    members_N3: NDArray[np.int64]
    endings: tuple[str, ...]
    columns: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int, /) -> Record:
        i = range(len(self))[i]
        members = self.members_N3[self.stops[i - 1] if i else 0 : self.stops[i]].tolist()
        found = {KEY: None, **{self.endings[ending]: (start, size) for ending, start, size in members}}
        try:
            chosen = record_of(found, self.columns)
            with self.path.open("rb") as file:
                return {name: self._read(file, name, at) if at else self._key(i) for name, at in chosen.items()}
        except ValueError as error:
            raise ValueError(f"{self.place(i)}: {error}") from None

    def place(self, i: int) -> str:
        return f"{self.name}: sample {self._key(i)!r}"

    def _key(self, i: int) -> str:
        return self.keys[i].decode(errors="surrogateescape")

    def _read(self, file: Any, name: str, at: tuple[int, int]) -> Any:
        start, size = at
        file.seek(start)
        content = file.read(size)
        if len(content) != size:
            raise ValueError(
                f"member {name!r} has {len(content)} of {size} bytes: the tar was cut since it was opened."
            )
        return decode_member(name, content)


def decode_member(name: str, content: bytes) -> Any:
    """What a member holds, by its ending: JSON is parsed, a `cls` is a number, text is decoded, all else is bytes.

    >>> decode_member("cls", b"7"), decode_member("meta.json", b"[1]"), decode_member("jpg", b"..")
    (7, [1], b'..')

    Raises:
        ValueError: if that cannot be done.
    """
    kind = name.rpartition(".")[2].lower()
    try:
        if kind == "json":
            return parse_json(content)
        if kind not in _TEXT:
            return content
        text = content.decode()
        return int(text) if kind == "cls" else text
    except UnicodeDecodeError as error:
        raise ValueError(f"member {name!r}: byte {error.start}: {not_utf8(error)}") from None
    except ValueError as error:
        raise ValueError(f"member {name!r}: {error}") from None


def split_name(name: str) -> tuple[str, str] | None:
    """Key and ending of a member; None if it is no part of a sample: hidden, or without an ending.

    >>> split_name("a.b/0001.seg.png"), split_name("a/.DS_Store"), split_name("a/LICENSE")
    (('a.b/0001', 'seg.png'), None, None)
    """
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return (f"{folder}{slash}{stem}", ending) if stem and ending else None


def open_tar(path: Path, name: str, columns: Sequence[str] | None = None) -> TarSamples:
    """The samples of a tar that is not compressed. Effect: reads its headers.

    Raises:
        ValueError: if it is no tar, was cut, has no samples, or two members of one name.
    """
    endings: dict[str, int] = {}
    samples: dict[str, int] = {}
    rows = array("q")
    seen: set[tuple[int, int]] = set()
    with path.open("rb") as file:
        for member, _ in walk_members(file, name):
            if (split := split_name(member.name)) is None:
                continue
            sample = samples.setdefault(split[0], len(samples))
            ending = endings.setdefault(split[1], len(endings))
            if (sample, ending) in seen:
                raise ValueError(f"{name}: two members are called {member.name!r}; {_ONE_OF_EACH}.")
            seen.add((sample, ending))
            rows.extend((sample, ending, member.offset_data, member.size))
    if not samples:
        raise ValueError(f"{name}: no samples; a member of one is named KEY.ENDING.")
    rows_N4 = np.frombuffer(rows, np.int64).reshape(-1, 4)
    rows_N4 = rows_N4[np.argsort(rows_N4[:, 0], kind="stable")]
    stops = np.cumsum(np.bincount(rows_N4[:, 0], minlength=len(samples)))
    keys = np.array([key.encode(errors="surrogateescape") for key in samples])
    return TarSamples(name, path, keys, stops, rows_N4[:, 1:], tuple(endings), columns)


def stream_tar(
    file: BufferedReader, name: str, columns: Sequence[str] | None, state: Any
) -> Iterator[tuple[Unread[Record], list[Any]]]:
    """The samples of a tar, each of which is the members of one key that follow one another, with the byte after it and
    its key. Effect: reads the file, which stands where `state` says.

    Raises:
        ValueError: as of `open_tar`.
    """
    key, end = None, 0
    found: dict[str, Any] = {}
    for member, content in walk_members(file, name, state[0] if state else 0):
        if (split := split_name(member.name)) is None:
            continue
        if split[0] != key:
            if key is not None:
                yield _unread(name, key, found, columns), [end, key]
            key, found = split[0], {KEY: None}
        if split[1] in found:
            raise ValueError(f"{name}: two members are called {member.name!r}; {_ONE_OF_EACH}.")
        found[split[1]] = content() if columns is None or split[1] in columns else b""
        end = member.offset_data - -member.size // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
    if key is not None:
        yield _unread(name, key, found, columns), [end, key]


def _unread(name: str, key: str, found: Mapping[str, Any], columns: Sequence[str] | None) -> Unread[Record]:
    place = f"{name}: sample {key!r}"

    def decode() -> Record:
        try:
            chosen = record_of(found, columns)
            return {name: key if content is None else decode_member(name, content) for name, content in chosen.items()}
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None

    return Unread(place, decode)


def walk_members(
    file: BinaryIO | BufferedReader, name: str, at: int = 0
) -> Iterator[tuple[tarfile.TarInfo, Callable[[], bytes]]]:
    """The files in a tar from byte `at` on, each with what reads its content, until the next one is asked for.

    Effect: reads `file`, which stands there, forwards.

    Raises:
        ValueError: if it is no tar, or not a whole one.
    """
    forward, done = _Forward(file, at), 0
    member: tarfile.TarInfo | None = None

    def content() -> bytes:
        assert member is not None
        if len(read := forward.read(member.size)) != member.size:
            told = f"member {member.name!r} has {len(read)} of {member.size} bytes"
            raise ValueError(f"{name}: not a whole tar: {told}, at byte {forward.at}. {_AGAIN}")
        return read

    try:
        tar = tarfile.TarFile(fileobj=forward)  # type: ignore[arg-type]  # All that it calls is there.
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # It would keep all of them.
            if member.issparse():
                raise ValueError(f"{name}: member {member.name!r} is sparse; write the tar without --sparse.")
            if member.isreg():
                done += 1
                yield member, content
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{name}: not a whole tar: {error}, at byte {forward.at}. {_AGAIN}") from None
    if not forward.file.seekable():  # What is compressed is checked up to its own end.
        while forward.file.read(1 << 20):
            pass
    # The library takes a header that it cannot read for the end of the tar, and also the end of the file.
    if forward.last != bytes(tarfile.BLOCKSIZE):
        whole = len(forward.last) == tarfile.BLOCKSIZE
        broken = f"the header at byte {forward.at - tarfile.BLOCKSIZE} is broken"
        what = f"{broken if whole else 'it ends without its end mark'}, after {done} files"
        raise ValueError(f"{name}: not a whole tar: {what}{f' from byte {at} on' if at else ''}. {_AGAIN}")


class _Forward:
    """A file that is read forwards from byte `at` on, as `tarfile` wants it; `last` is what it read last."""

    def __init__(self, file: BinaryIO | BufferedReader, at: int) -> None:
        self.file, self.at, self.last = file, at, b""

    def tell(self) -> int:
        return self.at

    def seek(self, to: int) -> int:
        if self.file.seekable():
            self.at = self.file.seek(to)
        while self.at < to and (passed := len(self.file.read(min(to - self.at, 1 << 20)))):
            self.at += passed
        return self.at

    def read(self, size: int) -> bytes:
        self.last = self.file.read(size)
        self.at += len(self.last)
        return self.last
