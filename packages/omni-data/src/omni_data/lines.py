"""Files of one record a line, read in any order: JSON lines and plain text.

One scan finds where every line starts (8 bytes of memory a line); a record is then one seek and one read. No file is
held open between reads, so a source pickles, forks and is shared between threads without care.
"""

import codecs
import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omni_data.document import Record, record_of


@dataclass(frozen=True, slots=True, eq=False)
class JsonLines:
    """One JSON object a line.

    Attributes:
        name: what errors call it; `path` may be a copy that is not compressed.
        columns: the fields of a record, each of which every line must have; None is whatever a line has.
    """

    name: str
    path: Path
    starts: NDArray[np.int64]
    columns: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int, /) -> Record:
        return parse_record(read_line(self.path, self.starts, i), lambda: self.place(i), self.columns)

    def place(self, i: int) -> str:
        return f"{self.name}:{line_number(self.path, int(self.starts[i]))}"


@dataclass(frozen=True, slots=True, eq=False)
class TextLines:
    """One record a line, with the line in `field`."""

    name: str
    path: Path
    starts: NDArray[np.int64]
    field: str = "text"

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int, /) -> Record:
        return parse_text(read_line(self.path, self.starts, i), lambda: self.place(i), self.field)

    def place(self, i: int) -> str:
        return f"{self.name}:{line_number(self.path, int(self.starts[i]))}"


def find_lines(path: Path) -> NDArray[np.int64]:
    """Where each line starts, in bytes, without the blank ones and a byte order mark. Effect: reads the file."""
    starts = array("q")
    with path.open("rb") as file:
        at = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
        file.seek(at)
        for line in file:
            if not line.isspace():
                starts.append(at)
            at += len(line)
    return np.frombuffer(starts, np.int64) if starts else np.empty(0, np.int64)


def walk_lines(file: BufferedReader, at: int = 0, number: int = 0) -> Iterator[tuple[bytes, list[int]]]:
    """The lines of `file` that are not blank, without their ends, each with the byte after it and its number, from 1
    and with blank lines. Effect: reads the file.

    Args:
        file: it stands at byte `at`.
        number: of the line that ends there.
    """
    for line in file:
        at, number = at + len(line), number + 1
        if number == 1 and not (line := line.removeprefix(codecs.BOM_UTF8)):
            continue
        if not line.isspace():
            yield line.rstrip(b"\r\n"), [at, number]


def parse_record(line: bytes, place: Callable[[], str], columns: Sequence[str] | None = None) -> Record:
    """The record that a line of JSON spells.

    Raises:
        ValueError: "place:column: what", if it is none.
    """
    try:
        return record_of(json.loads(line.decode()), columns)
    except json.JSONDecodeError as error:
        hint = "every line must be a JSON object of its own"
        raise ValueError(f"{place()}:{error.colno}: {error.msg}; {hint}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{place()}:{error.start + 1}: {not_utf8(error)}") from None
    except RecursionError:
        raise ValueError(f"{place()}: nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{place()}: {error}") from None


def parse_text(line: bytes, place: Callable[[], str], field: str) -> Record:
    """The record of the one field that a line of text is.

    Raises:
        ValueError: "place:column: what", if it is not UTF-8.
    """
    try:
        return {field: line.decode()}
    except UnicodeDecodeError as error:
        raise ValueError(f"{place()}:{error.start + 1}: {not_utf8(error)}") from None


def read_line(path: Path, starts: NDArray[np.int64], i: int) -> bytes:
    """The line that starts at byte `starts[i]`, without its end. Effect: reads the file."""
    start = int(starts[i])
    following = i % len(starts) + 1
    file = os.open(path, os.O_RDONLY)  # Of what opens and reads a file, this is done in the least time.
    try:
        stop = int(starts[following]) if following < len(starts) else os.fstat(file).st_size
        # Between it and the next one there may be blank lines.
        return os.pread(file, stop - start, start).partition(b"\n")[0].rstrip(b"\r")
    finally:
        os.close(file)


def line_number(path: Path, start: int) -> int:
    """The number, from 1 and with blank lines, of the line at byte `start`. Effect: reads the file up to there.

    Only an error asks for it, so it is counted then instead of stored for every line.
    """
    number, left = 1, start
    with path.open("rb") as file:
        while left and (chunk := file.read(min(left, 1 << 20))):
            number, left = number + chunk.count(b"\n"), left - len(chunk)
    return number


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong, without where."""
    return f"byte 0x{error.object[error.start]:02x} is not UTF-8 ({error.reason}). Convert the file to UTF-8."


def parse_json(content: bytes) -> Any:
    """The value of a whole JSON text.

    Raises:
        ValueError: "line:column: what", if it is none.
    """
    try:
        return json.loads(content.decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.lineno}:{error.colno}: {error.msg}.") from None
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise ValueError(f"{line}:{column}: {not_utf8(error)}") from None
    except RecursionError:
        raise ValueError("1: nested too deeply.") from None
