"""Where a stream stands, as a small value that any number of ranks can resume from. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

VERSION = 3
"""Of what `cursor_to_json` writes. A reader of this version reads all before it."""


class Position(NamedTuple):
    """Where a virtual shard stands in a source: in a window of rows, which are packed together.

    Attributes:
        number: windows before this one.
        at: where it begins in the source: documents consumed, or what else a source can be read on from; plain JSON.
        used: tokens already used of the document there.
        given: rows of the window already given.
        ended: after so many epochs the source was found to be through, here; 0 if it was not.
    """

    number: int = 0
    at: Any = 0
    used: int = 0
    given: int = 0
    ended: int = 0


@dataclass(frozen=True, slots=True)
class Cursor:
    """The position after a batch; `Cursor()` is the start.

    Attributes:
        rows: global rows emitted by all ranks together.
        positions: by the key of each source, one position for each virtual shard; empty at the start. A rank moves
            those of its own virtual shards only.
        tokens: positions of those rows, which may have been of several lengths; None if that was not counted.
    """

    rows: int = 0
    positions: Mapping[str, tuple[Position, ...]] = field(default_factory=dict)
    tokens: int | None = None

    def tokens_before(self, seq_len: int) -> int:
        """Positions of the rows emitted; if they were not counted, as if all rows had had `seq_len`."""
        return self.rows * seq_len if self.tokens is None else self.tokens

    def after(self, rows: int, seq_len: int) -> "Cursor":
        """The cursor after so many more rows of `seq_len` tokens, of which no virtual shard moved."""
        return replace(self, rows=self.rows + rows, tokens=self.tokens_before(seq_len) + rows * seq_len)


def with_sources(cursor: Cursor, keys: Iterable[str], shards: int) -> Cursor:
    """The cursor with a position for each of `shards` virtual shards of each source: those that it does not know are at
    their start.

    >>> {key: len(positions) for key, positions in with_sources(Cursor(), ["a", "b"], 2).positions.items()}
    {'a': 2, 'b': 2}
    """
    return replace(cursor, positions={key: (Position(),) * shards for key in keys} | dict(cursor.positions))


def merge_cursors(cursors: Iterable[Cursor]) -> Cursor:
    """The one cursor of all ranks after the same step: for each virtual shard the furthest position.

    >>> first = Cursor(4, {"": (Position(1, 3), Position())})
    >>> second = Cursor(4, {"": (Position(), Position(1, 2, 7))})
    >>> merge_cursors([first, second]) == Cursor(4, {"": (Position(1, 3), Position(1, 2, 7))})
    True

    Raises:
        ValueError: if there are none, or they are not of one step, the same sources and one number of virtual shards.
    """
    cursors = list(cursors)
    if not cursors:
        raise ValueError("no cursors to merge: give the cursor of every rank.")
    if len({cursor.rows for cursor in cursors}) > 1:
        rows = [cursor.rows for cursor in cursors]
        raise ValueError(f"cursors after {rows} rows are not of one step; merge those of the same step of every rank.")
    if len(tokens := {cursor.tokens for cursor in cursors}) > 1:
        raise ValueError(f"cursors after {tokens} tokens are not of one step, or not of rows of one length.")
    shapes = [{key: len(positions) for key, positions in cursor.positions.items()} for cursor in cursors]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"cursors of virtual shards {shapes} by source are not of one stream.")
    furthest = {key: _furthest([c.positions[key] for c in cursors]) for key in shapes[0]}
    return replace(cursors[0], positions=furthest)


def cursor_to_json(cursor: Cursor) -> dict[str, object]:
    """The cursor as what `json` can write.

    >>> cursor_to_json(Cursor(2, {"": (Position(1, 5),)}))
    {'version': 3, 'rows': 2, 'positions': [['', [[1, 5, 0, 0]]]]}
    """
    positions = [[key, [list(p if p.ended else p[:-1]) for p in each]] for key, each in cursor.positions.items()]
    counted = {} if cursor.tokens is None else {"tokens": cursor.tokens}
    return {"version": VERSION, "rows": cursor.rows, **counted, "positions": positions}


def cursor_from_json(value: object) -> Cursor:
    """The cursor that `cursor_to_json` wrote, in this version or an earlier one.

    Raises:
        ValueError: if it is anything else.
    """
    if not isinstance(value, Mapping) or set(value) - {"version", "tokens"} != {"rows", "positions"}:
        got = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(f"a cursor is an object with 'rows' and 'positions', got {got}.")
    if value.get("version", 1) not in range(1, VERSION + 1):
        raise ValueError(f"a cursor of version {value['version']!r:.40} is newer than this reader ({VERSION}).")
    rows, positions, tokens = value["rows"], value["positions"], value.get("tokens")
    if not _is_count(rows):
        raise ValueError(f"the rows of a cursor are a count, got {rows!r:.40}.")
    if not (tokens is None or _is_count(tokens)):
        raise ValueError(f"the tokens of a cursor are a count, got {tokens!r:.40}.")
    if "version" not in value:
        return Cursor(rows, _from_first_version(positions))
    if not isinstance(positions, list | tuple) or not all(map(_is_pair, positions)):
        raise ValueError(f"the positions of a cursor are pairs of a source and a list, got {positions!r:.40}.")
    return Cursor(rows, {key: _positions(key, each) for key, each in positions}, tokens)


def _furthest(everyone: list[tuple[Position, ...]]) -> tuple[Position, ...]:
    return tuple(max(together, key=lambda p: (p.number, p.given, p.ended)) for together in zip(*everyone, strict=True))


def _positions(key: str, each: object) -> tuple[Position, ...]:
    """The positions of one source."""
    if not isinstance(each, list | tuple):
        raise ValueError(f"the positions of source {key!r} are a list, got {each!r:.40}.")
    for shard, position in enumerate(each):
        most = len(Position._fields)
        shape = isinstance(position, list | tuple) and most - 1 <= len(position) <= most
        if not shape or not all(_is_count(value) for i, value in enumerate(position) if i != 1):
            raise ValueError(f"source {key!r}: the position of virtual shard {shard} is no position: {position!r:.40}.")
    return tuple(Position(*position) for position in each)


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str)


def _from_first_version(positions: object) -> dict[str, tuple[Position, ...]]:
    """Positions that were two counts: documents consumed, and tokens used of the one in progress; of one source."""
    if not isinstance(positions, list | tuple):
        raise ValueError(f"the positions of a cursor are a list, got {positions!r:.40}.")
    for shard, position in enumerate(positions):
        if not isinstance(position, list | tuple) or len(position) != 2 or not all(map(_is_count, position)):
            raise ValueError(f"the position of virtual shard {shard} is two counts, got {position!r:.40}.")
    return {"": tuple(Position(0, at, used) for at, used in positions)} if positions else {}


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0
