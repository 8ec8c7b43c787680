"""Rows of JSON lines as columns. What cannot be read is told by file and line. Effect: reads files."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]
_TOLD: Final = 5
"""Damaged lines of a file that are told one by one."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows by step, which rises from one to the next."""

    columns: Mapping[str, Column] = field(default_factory=lambda: {"step": np.zeros(0)})
    """Numbers by name, each (N,); nan in rows that lack it."""
    damaged: tuple[str, ...] = ()
    """Lines that are no rows, in words."""
    again: tuple[int, int, int] | None = None
    """How many rows are left out as a later row has their step, and the first and last such step."""

    def __len__(self) -> int:
        return len(self.columns["step"])

    @property
    def steps(self) -> Column:
        return self.columns["step"]

    def values(self, name: str) -> tuple[Column, Column]:
        """The steps that have a finite value of this name, and these values."""
        column = self.columns.get(name, np.full(len(self), math.nan))
        told = np.isfinite(column)
        return self.steps[told], column[told]

    @property
    def names(self) -> list[str]:
        """Of columns with a value."""
        return [name for name, column in self.columns.items() if np.isfinite(column).any()]


def read_table(path: Path) -> Table:
    """The rows of `path`; none if there is no such file.

    A run that a kill stopped may have left half a line; one that was continued by other means may have rows of a step
    twice, of which the last is what it went on from.
    """
    if not path.is_file():
        return Table()
    rows: list[dict[str, Any]] = []
    damaged: list[str] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            row = _row_of(line)
            if row is not None:
                rows.append(row)
            elif line.strip():
                cut = "" if line.endswith(b"\n") else ", cut short as by a kill"
                damaged.append(f"{path}:{number} is no row of metrics{cut}: it is left out.")
    if len(damaged) > _TOLD:
        damaged = [*damaged[:_TOLD], f"{path} has {len(damaged) - _TOLD} more such lines."]
    return table_of(rows, damaged)


def table_of(rows: Sequence[Mapping[str, Any]], damaged: Sequence[str] = ()) -> Table:
    """`rows` as columns. Of a list, the most and the least are columns. Pure.

    >>> table_of([{"step": 1, "loss": 3}, {"step": 2, "load": [1, 3]}]).columns["load_most"]
    array([nan,  3.])
    """
    if not rows:
        return Table(damaged=tuple(damaged))
    flat = [_numbers_of(row) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    columns = {name: np.array([row.get(name, math.nan) for row in flat], dtype=np.float64) for name in names}
    # The last row of each step.
    _, found = np.unique(columns["step"][::-1], return_index=True)
    kept = len(rows) - 1 - found
    lost = np.delete(columns["step"], kept)
    again = (len(lost), int(lost.min()), int(lost.max())) if len(lost) else None
    return Table({name: column[kept] for name, column in columns.items()}, tuple(damaged), again)


def _row_of(line: bytes) -> dict[str, Any] | None:
    """The row that a line is; None if it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and _is_number(row.get("step")) and math.isfinite(row["step"])
    return row if is_row else None


def _numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in row.items():
        if _is_number(value):
            numbers[name] = value
        elif type(value) is list and value and {*map(type, value)} <= {int, float}:
            numbers[f"{name}_most"], numbers[f"{name}_least"] = max(value), min(value)
    return numbers


def _is_number(value: Any) -> bool:
    """Whether it is one that an array of floats may hold; true and false are none."""
    return type(value) is float or (type(value) is int and -(1 << 63) < value < 1 << 63)
