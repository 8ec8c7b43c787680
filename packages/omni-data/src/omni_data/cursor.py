"""Where a stream stands, as a small value that any number of ranks can resume from. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cursor:
    """The position after a batch; `Cursor()` is the start.

    Attributes:
        rows: global rows emitted by all ranks together.
        positions: for each virtual shard, the documents it has consumed and the tokens already used of the one in
            progress; empty at the start. A rank moves the positions of its own virtual shards only.
    """

    rows: int = 0
    positions: tuple[tuple[int, int], ...] = ()


def merge_cursors(cursors: Iterable[Cursor]) -> Cursor:
    """The one cursor of all ranks after the same step: for each virtual shard the furthest position.

    >>> merge_cursors([Cursor(4, ((3, 0), (0, 0))), Cursor(4, ((0, 0), (2, 7)))])
    Cursor(rows=4, positions=((3, 0), (2, 7)))

    Raises:
        ValueError: if there are none, or they are not of one step and one number of virtual shards.
    """
    cursors = list(cursors)
    if not cursors:
        raise ValueError("no cursors to merge: give the cursor of every rank.")
    if len({cursor.rows for cursor in cursors}) > 1:
        rows = [cursor.rows for cursor in cursors]
        raise ValueError(f"cursors after {rows} rows are not of one step; merge those of the same step of every rank.")
    if len({len(cursor.positions) for cursor in cursors}) > 1:
        sizes = [len(cursor.positions) for cursor in cursors]
        raise ValueError(f"cursors of {sizes} virtual shards are not of one stream.")
    return Cursor(cursors[0].rows, tuple(map(max, zip(*(cursor.positions for cursor in cursors), strict=True))))


def cursor_to_json(cursor: Cursor) -> dict[str, object]:
    """The cursor as what `json` can write.

    >>> cursor_to_json(Cursor(2, ((1, 5),)))
    {'rows': 2, 'positions': [[1, 5]]}
    """
    return {"rows": cursor.rows, "positions": [list(position) for position in cursor.positions]}


def cursor_from_json(value: object) -> Cursor:
    """The cursor that `cursor_to_json` wrote.

    Raises:
        ValueError: if it is anything else.
    """
    if not isinstance(value, Mapping) or set(value) != {"rows", "positions"}:
        got = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(f"a cursor is an object with 'rows' and 'positions', got {got}.")
    rows, positions = value["rows"], value["positions"]
    if not _is_count(rows):
        raise ValueError(f"the rows of a cursor are a count, got {rows!r:.40}.")
    if not isinstance(positions, list | tuple):
        raise ValueError(f"the positions of a cursor are a list, got {positions!r:.40}.")
    for shard, position in enumerate(positions):
        if not isinstance(position, list | tuple) or len(position) != 2 or not all(map(_is_count, position)):
            raise ValueError(f"the position of virtual shard {shard} is two counts, got {position!r:.40}.")
    return Cursor(rows, tuple((documents, tokens) for documents, tokens in positions))


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0
