"""Files of one document a line, read in any order: JSON lines and plain text.

One scan finds where every line starts (8 bytes of memory a line); a document is then one seek and one read. No file is
held open between reads, so a source pickles, forks and is shared between threads without care.
"""

import codecs
import json
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omni_data.document import Document, document_of


@dataclass(frozen=True, slots=True, eq=False)
class JsonLines:
    """One JSON object a line; the document is in `field`."""

    path: Path
    field: str
    starts: NDArray[np.int64]

    @property
    def name(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int, /) -> Document:
        start = int(self.starts[i])
        try:
            return document_of(json.loads(read_line(self.path, start).decode()), self.field)
        except json.JSONDecodeError as error:
            hint = "every line must be a JSON object of its own"
            raise ValueError(f"{self._where(start)}:{error.colno}: {error.msg}; {hint}.") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._where(start)}:{error.start + 1}: {_not_utf8(error)}") from None
        except RecursionError:
            raise ValueError(f"{self._where(start)}: nested too deeply.") from None
        except ValueError as error:
            raise ValueError(f"{self._where(start)}: {error}") from None

    def _where(self, start: int) -> str:
        return f"{self.path}:{line_number(self.path, start)}"


@dataclass(frozen=True, slots=True, eq=False)
class TextLines:
    """One document a line."""

    path: Path
    starts: NDArray[np.int64]

    @property
    def name(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int, /) -> str:
        start = int(self.starts[i])
        try:
            return read_line(self.path, start).decode()
        except UnicodeDecodeError as error:
            where = f"{self.path}:{line_number(self.path, start)}:{error.start + 1}"
            raise ValueError(f"{where}: {_not_utf8(error)}") from None


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


def read_line(path: Path, start: int) -> bytes:
    """The line that starts at byte `start`, without its end. Effect: reads the file."""
    with path.open("rb") as file:
        file.seek(start)
        return file.readline().rstrip(b"\r\n")


def line_number(path: Path, start: int) -> int:
    """The number, from 1 and with blank lines, of the line at byte `start`. Effect: reads the file up to there.

    Only an error asks for it, so it is counted then instead of stored for every line.
    """
    number, left = 1, start
    with path.open("rb") as file:
        while left and (chunk := file.read(min(left, 1 << 20))):
            number, left = number + chunk.count(b"\n"), left - len(chunk)
    return number


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} is not UTF-8 ({error.reason}). Convert the file to UTF-8."
