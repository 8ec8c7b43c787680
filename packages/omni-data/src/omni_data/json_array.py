"""A JSON file that is one array of objects, as instruction data often is, read in any order.

One scan parses every object once and keeps only where it starts and stops; while it runs, the file is in memory. A
record is then one read, as from a file of lines.
"""

import codecs
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omni_data.document import Record, record_of
from omni_data.lines import line_number, parse_json

_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True, eq=False)
class JsonArray:
    """The objects of a JSON array.

    Attributes:
        bounds: where each object starts and stops, in bytes.
        columns: as of `JsonLines`.
    """

    name: str
    path: Path
    bounds: NDArray[np.int64]
    columns: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, i: int, /) -> Record:
        start, stop = map(int, self.bounds[i])
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read(stop - start)
        try:
            return record_of(parse_json(content), self.columns)
        except ValueError as error:
            raise ValueError(f"{self.place(i)}: {error}") from None

    def place(self, i: int) -> str:
        return f"{self.name}:{line_number(self.path, int(self.bounds[i][0]))}: item {i}"


def is_json_array(path: Path) -> bool:
    """Whether the first character that is not blank opens an array. Effect: reads the file up to there."""
    with path.open("rb") as file:
        start = file.read(1 << 16).removeprefix(codecs.BOM_UTF8).lstrip()
    return start.startswith(b"[")


def find_objects(path: Path, name: str) -> NDArray[np.int64]:
    """Where each value of the array starts and stops, in bytes. Effect: reads the file.

    Raises:
        ValueError: if it is not one whole array, with the line and column.
    """
    # Read as Latin-1, in which a character is a byte: what JSON is made of, between and in strings, is ASCII in both.
    text = path.read_bytes().decode("latin-1")
    bounds: list[tuple[int, int]] = []
    scan = json.JSONDecoder().raw_decode
    try:
        at = _skip(text, text.index("[") + 1)
        while text[at : at + 1] != "]" or bounds:
            stop = scan(text, at)[1]
            bounds.append((at, stop))
            at = _skip(text, stop)
            if text[at : at + 1] == "]":
                break
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
            at = _skip(text, at + 1)
        if (end := _skip(text, at + 1)) != len(text):
            raise json.JSONDecodeError("Extra data after the array", text, end)
    except json.JSONDecodeError as error:
        line = text[: error.pos].rpartition("\n")[2].encode("latin-1")
        column = len(line.decode(errors="replace")) + 1
        hint = "the file must be one whole array of objects, or an object a line"
        raise ValueError(f"{name}:{error.lineno}:{column}: {error.msg}; {hint}.") from None
    except RecursionError:
        raise ValueError(f"{name}: item {len(bounds)} is nested too deeply.") from None
    return np.array(bounds, np.int64).reshape(-1, 2)


def _skip(text: str, at: int) -> int:
    """Where the blanks that start at `at` end."""
    match = _SPACE.match(text, at)
    assert match is not None  # The pattern also matches nothing at all.
    return match.end()
