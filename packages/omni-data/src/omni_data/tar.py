"""Tars of samples, in the convention of webdataset: members that share a name up to its first dot are one record.

    a/0001.jpg  a/0001.json     {"__key__": "a/0001", "jpg": bytes, "json": the parsed value}

One scan of the headers finds every member; a record is then a few seeks. Nothing is unpacked to a disk, so a name is
only a key, whatever it spells.
"""

import tarfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omni_data.document import Record, record_of
from omni_data.lines import not_utf8, parse_json

KEY = "__key__"

_TEXT = ("txt", "text", "cls")


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
        try:
            return decode_member(name, content)
        except ValueError as error:
            raise ValueError(f"member {name!r}: {error}") from None


def decode_member(name: str, content: bytes) -> Any:
    """What a member holds, by its ending: JSON is parsed, a `cls` is a number, text is decoded, all else is bytes.

    >>> decode_member("cls", b"7"), decode_member("meta.json", b"[1]"), decode_member("jpg", b"..")
    (7, [1], b'..')
    """
    kind = name.rpartition(".")[2].lower()
    if kind == "json":
        return parse_json(content)
    if kind not in _TEXT:
        return content
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start}: {not_utf8(error)}") from None
    return int(text) if kind == "cls" else text


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
    for member in _members(path, name):
        if (split := split_name(member.name)) is None:
            continue
        sample = samples.setdefault(split[0], len(samples))
        ending = endings.setdefault(split[1], len(endings))
        if (sample, ending) in seen:
            raise ValueError(f"{name}: two members are called {member.name!r}; a sample can have one of each ending.")
        seen.add((sample, ending))
        rows.extend((sample, ending, member.offset_data, member.size))
    if not samples:
        raise ValueError(f"{name}: no samples; a member of one is named KEY.ENDING.")
    rows_N4 = np.frombuffer(rows, np.int64).reshape(-1, 4)
    rows_N4 = rows_N4[np.argsort(rows_N4[:, 0], kind="stable")]
    stops = np.cumsum(np.bincount(rows_N4[:, 0], minlength=len(samples)))
    keys = np.array([key.encode(errors="surrogateescape") for key in samples])
    return TarSamples(name, path, keys, stops, rows_N4[:, 1:], tuple(endings), columns)


def _members(path: Path, name: str) -> "list[tarfile.TarInfo]":
    """The files in a tar. Effect: reads its headers."""
    size = path.stat().st_size
    members: list[tarfile.TarInfo] = []
    try:
        with tarfile.TarFile(path) as tar:
            for member in tar:
                if member.issparse():
                    raise ValueError(f"{name}: member {member.name!r} is sparse; write the tar without --sparse.")
                if member.isreg():
                    members.append(member)
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{name}: not a whole tar: {error}. {_AGAIN}") from None
    # The library takes a header that it cannot read for the end of the tar, and also the end of the file.
    with path.open("rb") as file:
        file.seek(end)
        mark = file.read(tarfile.BLOCKSIZE)
    if mark != bytes(tarfile.BLOCKSIZE):
        what = (
            f"the header at byte {end} is broken" if len(mark) == tarfile.BLOCKSIZE else "it ends without its end mark"
        )
        raise ValueError(f"{name}: not a whole tar: {what}, after {len(members)} files in {size} bytes. {_AGAIN}")
    return members


_AGAIN = "Copy or write it again."
