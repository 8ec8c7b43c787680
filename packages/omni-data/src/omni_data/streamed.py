"""From a name to a source that is read where it is, from the first record on: nothing is counted or copied before.

Names are those of `source`, but for what is at hand at once anyway (`builtin`, a saved dataset) and what cannot be
read so (one JSON array, a parquet or Arrow file that is compressed as a whole). A part is a file, and of `hf:` a shard.

What a stream goes on from:

    lines, text         the byte after a line, and its number
    parquet             the rows before: only their row group is decoded again, up to there
    Arrow               the byte where a batch of rows begins
    tar                 the byte where a sample begins
    hf:                 what `datasets` goes on from; it reads the file of the shard again up to there, and decodes it

Of a compressed file, bytes are those of its content: it is decompressed again up to there, and nothing of that decoded.

A part that is shared by several virtual shards is read by each of them, as bytes, though each record is decoded only
by one: take at least as many files as virtual shards, or not many fewer.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from omni_data.columns import is_saved_dataset, load_hub
from omni_data.combine import mapped
from omni_data.content import open_content
from omni_data.document import Document, Record, document_of
from omni_data.fingerprint import spread
from omni_data.lines import parse_record, parse_text, walk_lines
from omni_data.read import Streamed, Unread, first_of
from omni_data.remote import Place, ending_of, version_of
from omni_data.source import AT_ONCE, check_line, find_places, kind_of, local_path
from omni_data.tables import check_columns, stream_arrow, stream_parquet, stream_shard
from omni_data.tar import stream_tar

T = TypeVar("T")
Items = Iterator[tuple[Unread[Record], Any]]

_NOTHING = {
    "tar": "no samples; a member of one is named KEY.ENDING.",
    "parquet": "no rows.",
    "arrow": "no rows.",
}
_NO_LINE = "empty; there is no line that is not blank."


def stream_records(spec: str, *, columns: Sequence[str] | None = None) -> Streamed[Record]:
    """The records that `spec` names, read one after the other in each of its files. The first record of the files (of
    64 spread over them, if there are more) is already checked.

    Effect: reads that much. Records come as those of `open_records`; the members of a sample of a tar must follow one
    another.

    Args:
        spec: a path, a folder, a pattern, a URL, or `hf:NAME[:CONFIG][@SPLIT]`.
        columns: the fields to read, which every record must have; None is whatever a record has.

    Raises:
        ValueError: if there is no such thing, or it cannot be streamed, or a file is empty or its first record cannot
            be read.
    """
    return _checked(_open(spec, columns, "text"))


def stream_source(spec: str, *, field: str = "text") -> Streamed[Document]:
    """The documents that `spec` names, read one after the other in each of its files, checked as `stream_records` does.

    Effect: as of `stream_records`.

    Args:
        spec: as of `stream_records`.
        field: where a record keeps its document: a string, or a list of token ids. A line of text is a document,
            whatever the field.

    Raises:
        ValueError: as of `stream_records`, or if a first record has no document in `field`.
    """
    return _checked(mapped(_open(spec, [field], field), partial(document_of, field=field)))


@dataclass(frozen=True, slots=True, eq=False)
class StreamedFiles:
    """The records of files, each of which is a part.

    Attributes:
        columns: the fields to read; None is whatever a record has.
        line: the field that a line of text is in.
    """

    name: str
    places: tuple[Place, ...]
    columns: Sequence[str] | None
    line: str

    @property
    def parts(self) -> int:
        return len(self.places)

    def version(self) -> str:
        """The names of all files, and what tells their content. Effect: asks the storage, or reads some of them."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            versions = list(pool.map(version_of, self.places))
        return repr([(Path(place.name).name, told) for place, told in zip(self.places, versions, strict=True)])

    def read(self, part: int, state: Any, /) -> Items:
        place = self.places[part]
        kind = kind_of(place)
        found = state is not None
        for item in _read(place, kind, self.columns, self.line, state):
            found = True
            yield item
        if not found:
            raise ValueError(f"{place.name}: {_NOTHING.get(str(kind), _NO_LINE)}")


@dataclass(frozen=True, slots=True, eq=False)
class StreamedHub:
    """The rows of a dataset of the hub; its shards are the parts.

    Attributes:
        digest: of the names of its files and the commit, or times, that they are of.
    """

    name: str
    dataset: Any
    digest: str
    columns: Sequence[str] | None

    @property
    def parts(self) -> int:
        return self.dataset.num_shards

    def version(self) -> str:
        return self.digest

    def read(self, part: int, state: Any, /) -> Items:
        return stream_shard(self.dataset, self.name, part, self.columns, state)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _open_hub, (self.name.removeprefix("hf:"), self.columns)


def _open(spec: str, columns: Sequence[str] | None, line: str) -> Streamed[Record]:
    if spec.startswith("hf:"):
        return _open_hub(spec.removeprefix("hf:"), columns)
    if not spec or spec == "builtin" or is_saved_dataset(Path(local_path(spec)).expanduser()):
        what = f"{spec}: gives any record at once" if spec else "no source is named"
        raise ValueError(f"{what}: a stream is of files, or of hf:NAME; `open_records` opens everything else.")
    places = find_places(spec)
    whole = [p.name for p in places if kind_of(p) in ("parquet", "arrow") and ending_of(p.name)[1]]
    if whole:
        hint = "its own compression is inside. `open_records` decompresses it to a copy"
        raise ValueError(f"{', '.join(whole[:5])}: a table that is compressed as a whole cannot be streamed; {hint}.")
    if any(kind_of(place) == "text" for place in places):
        check_line(spec, columns, line)
    return StreamedFiles(spec, tuple(places), columns, line)


def _open_hub(spec: str, columns: Sequence[str] | None) -> StreamedHub:
    dataset, digest = load_hub(spec, _load_shards)
    if dataset.features:
        check_columns(f"hf:{spec}", columns, list(dataset.features))
        dataset = dataset.decode(False)
        dataset = dataset if columns is None else dataset.select_columns(list(columns))
    return StreamedHub(f"hf:{spec}", dataset, digest, columns)


def _load_shards(name: str, config: str | None, split: str) -> tuple[Any, str]:
    from datasets import load_dataset_builder

    builder = load_dataset_builder(name, config)
    return builder.as_streaming_dataset(split=split), str(builder.hash)


def _read(place: Place, kind: str | None, columns: Sequence[str] | None, line: str, state: Any) -> Items:
    """The records of one file from `state` on."""
    if kind == "parquet":
        yield from stream_parquet(place, columns, state)
        return
    if kind == "arrow":
        yield from stream_arrow(place, columns, state)
        return
    with open_content(place, state[0] if state else 0) as file:
        if kind == "tar":
            yield from stream_tar(file, place.name, columns, state)
            return
        if kind == "json" and state is None and file.peek(1 << 16).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            raise ValueError(f"{place.name}: one JSON array cannot be streamed; `open_records` reads it.")
        parse = partial(parse_text, field=line) if kind == "text" else partial(parse_record, columns=columns)
        for content, after in walk_lines(file, *(state or (0, 0))):
            where = f"{place.name}:{after[1]}"
            yield Unread(where, partial(parse, content, lambda where=where: where)), after


def _checked(source: Streamed[T]) -> Streamed[T]:
    """The source, of whose parts the first items can be read."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(partial(first_of, source), spread(source.parts)))
    return source
