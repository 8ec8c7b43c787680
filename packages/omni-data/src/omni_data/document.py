"""What a record and a document are, and what a collection of them promises. Pure.

A source is sized and gives any item at once: that is all a stream needs to shuffle without a buffer and to resume
without a replay.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Generic, Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)

Record = Mapping[str, Any]
"""Values by name: an object of JSON, a row of a table, the members of a tar that share a key."""

Document = str | list[int]
"""Text, or token ids."""


class Source(Protocol[T_co]):
    """A sized, random access collection.

    It may also have a method `place(i) -> str`, which says where item `i` is from in the words of an error message
    (`place_of`).
    """

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    def __len__(self) -> int:
        """How many items there are."""
        ...

    def __getitem__(self, i: int, /) -> T_co:
        """Item `i`; raises IndexError past the end, so that a source can be iterated."""
        ...


@dataclass(frozen=True, slots=True)
class Documents(Generic[T_co]):
    """Documents, or records, in memory, as a source."""

    name: str
    documents: Sequence[T_co]

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, i: int, /) -> T_co:
        return self.documents[i]


def place_of(source: Source[Any], i: int) -> str:
    """Where item `i` of `source` is from: what the source says itself, or else its row.

    >>> place_of(Documents("memory", ["a", "b"]), 1)
    'memory: row 1'
    """
    place = getattr(source, "place", None)
    return f"{source.name}: row {i}" if place is None else place(i)


def record_of(value: object, columns: Sequence[str] | None = None) -> Record:
    """The record that `value` is, of all its fields or of `columns` alone.

    Raises:
        ValueError: if it is no record, or lacks some of `columns`. It does not say where the value is from.
    """
    if not isinstance(value, Mapping):
        fields = f" with a field {', '.join(map(repr, columns))}" if columns else ""
        raise ValueError(f"a record must be an object{fields}, got {_kind(value)}.")
    if columns is None:
        return value
    check_fields(columns, value)
    return {name: value[name] for name in columns}


def check_fields(columns: Iterable[str], found: Iterable[str]) -> None:
    """Nothing, if all `columns` are among those `found`.

    Raises:
        ValueError: with every column that is not.
    """
    found = list(found)
    if missing := [missing_field(name, found) for name in columns if name not in found]:
        raise ValueError(" ".join(missing))


def document_of(record: object, field: str) -> Document:
    """The document in `field` of `record`.

    Raises:
        ValueError: if the record has no such field, or it holds neither text nor token ids. It does not say where the
            record is from: the caller does.
    """
    value = record_of(record, (field,))[field]
    if isinstance(value, str):
        return checked_text(value)
    if isinstance(value, list) and all(map(_is_token, value)):
        return value
    raise ValueError(f"field {field!r} holds {_kind(value)}: a document is a string, or a list of token ids.")


def checked_text(text: str) -> str:
    """The text itself, which can be written as UTF-8. JSON can spell half a character, which tokenizers refuse."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"{text[error.start]!r} at character {error.start}"
        raise ValueError(f"the text holds half a surrogate pair, {half}: it is not Unicode text.") from None
    return text


def missing_field(field: str, found: Iterable[str]) -> str:
    """The complaint that `field` is not among those `found`, with the nearest of them."""
    names = [str(name) for name in found]
    if not names:
        return f"no field {field!r}; there are none at all."
    near = get_close_matches(field, names, n=1, cutoff=0.3)
    hint = f" Did you mean field={near[0]!r}?" if near else " Choose one with `field=`."
    return f"no field {field!r}; there are {', '.join(map(repr, names))}.{hint}"


def _is_token(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _kind(value: object) -> str:
    """What `value` is, in the words of an error message."""
    if isinstance(value, list):
        odd = next((v for v in value if not _is_token(v)), None)
        return "a list" if odd is None else f"a list with {odd!r:.40}"
    return "null" if value is None else f"{value!r:.40} ({type(value).__name__})"
