"""What a document is, and what a collection of them promises. Pure.

A source is sized and gives any document at once: that is all a stream needs to shuffle without a buffer and to resume
without a replay.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)

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
        """How many documents there are."""
        ...

    def __getitem__(self, i: int, /) -> T_co:
        """Item `i`; raises IndexError past the end, so that a source can be iterated."""
        ...


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents in memory, as a source."""

    name: str
    documents: Sequence[Document]

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, i: int, /) -> Document:
        return self.documents[i]


def place_of(source: Source[Any], i: int) -> str:
    """Where item `i` of `source` is from: what the source says itself, or else its row."""
    place = getattr(source, "place", None)
    return f"{source.name}: row {i}" if place is None else place(i)


def document_of(record: object, field: str) -> Document:
    """The document in `field` of `record`.

    Raises:
        ValueError: if the record has no such field, or it holds neither text nor token ids. It does not say where the
            record is from: the caller does.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"a record must be an object with a field {field!r}, got {_kind(record)}.")
    if field not in record:
        raise ValueError(missing_field(field, record))
    value = record[field]
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
