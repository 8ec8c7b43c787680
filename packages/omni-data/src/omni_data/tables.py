"""Tables read one row after the other from any row on: parquet files, Arrow streams, shards of a dataset of the hub.

Columns are decoded some rows at a time, so that a shard which takes every so-many-th block of a file holds little of
it, and values become those of Python only where they are taken.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any

from omni_data.columns import example_of, row_of, undecoded
from omni_data.content import open_content
from omni_data.document import Record, check_fields, record_of
from omni_data.read import Unread
from omni_data.remote import Place

ROWS = 1024
"""Rows that are decoded at a time."""

BUFFER = 1 << 18
"""Bytes of a column of parquet that are read at a time."""

Rows = Iterator[tuple[Unread[Record], Any]]


def stream_parquet(place: Place, columns: Sequence[str] | None, state: int | None) -> Rows:
    """The rows of a parquet file; the state is how many of them were read. Effect: reads the file.

    Raises:
        ValueError: if it is not a readable parquet file, or lacks some of `columns`.
    """
    import pyarrow.parquet as pq

    done = state or 0
    wanted = None if columns is None else list(columns)
    with (
        _told(place, "parquet file", lambda: done),
        open_content(place) as file,
        # Else it would hold whole columns of a row group, in every virtual shard.
        pq.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER) as table,
    ):
        check_columns(place.name, columns, table.schema_arrow.names)
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.metadata.num_row_groups)]
        for group, stop in enumerate(accumulate(sizes)):
            if stop <= done:
                continue
            first = stop - sizes[group]
            for batch in table.iter_batches(ROWS, row_groups=[group], columns=wanted, use_threads=False):
                found = dict(zip(batch.schema.names, batch.columns, strict=True))
                for row in range(max(0, done - first), batch.num_rows):
                    done = first + row + 1
                    yield Unread(f"{place.name}: row {done - 1}", partial(row_of, found, row)), done
                first += batch.num_rows


def stream_arrow(place: Place, columns: Sequence[str] | None, state: Sequence[int] | None) -> Rows:
    """The rows of an Arrow file in the stream format; the state is where a batch of rows begins, the rows before it,
    and how many of it were read. Effect: reads the file.

    Raises:
        ValueError: if it is none, or was cut, or lacks some of `columns`.
    """
    import pyarrow as pa
    from datasets import Features

    at, before, done = state or (0, 0, 0)
    with _told(place, "Arrow stream", lambda: before + done), open_content(place) as content:
        file = pa.PythonFile(content, "r")
        reader = pa.ipc.open_stream(file)
        check_columns(place.name, columns, reader.schema.names)
        features = undecoded(Features.from_arrow_schema(reader.schema))
        features = features if columns is None else Features({name: features[name] for name in columns})
        if at and not any(map(pa.types.is_dictionary, reader.schema.types)):
            file.seek(at)  # Values that are spelled in dictionaries need those that come before them.
        while (batch := _next_batch(reader, file, place)) is not None:
            start, batch = batch
            if start < at:
                continue
            at = start
            batch = batch if columns is None else batch.select(list(columns))
            for row in range(done, batch.num_rows):
                done = row + 1
                decode = partial(example_of, features, batch.slice(row, 1))
                yield Unread(f"{place.name}: row {before + row}", decode), [at, before, done]
            before, done = before + batch.num_rows, 0


def stream_shard(dataset: Any, name: str, part: int, columns: Sequence[str] | None, state: Any) -> Rows:
    """The rows of one shard of a streamed dataset of the hub; the state is how many of them were read, and what the
    library goes on from. Effect: reads the files of the shard.

    Raises:
        ValueError: if they cannot be read.
    """
    from datasets.exceptions import DatasetsError

    shard = dataset.shard(dataset.num_shards, part)
    done, resume = state or (0, None)
    if resume is not None:
        shard.load_state_dict(resume)
    place = Place(f"{name}: shard {part}", "")
    with _told(place, "dataset", lambda: done, ValueError, DatasetsError):
        for row in shard:
            where = f"{place.name}, row {done}"
            done += 1
            yield Unread(where, partial(_chosen, row, columns, where)), [done, shard.state_dict()]


def check_columns(name: str, columns: Sequence[str] | None, found: Sequence[str]) -> None:
    """Nothing, if all `columns` are among those `found`.

    Raises:
        ValueError: with every column that is not, and `name`.
    """
    try:
        check_fields(columns or (), found)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _next_batch(reader: Any, file: Any, place: Place) -> tuple[int, Any] | None:
    """The next batch of rows and where it begins; None at the end mark."""
    start = file.tell()
    try:
        return start, reader.read_next_batch()
    except StopIteration:
        if file.tell() == start:
            raise ValueError(f"{place.name}: not a readable Arrow stream: it ends without its end mark.") from None
    return None


def _chosen(row: Record, columns: Sequence[str] | None, where: str) -> Record:
    try:
        return record_of(row, columns)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


@contextmanager
def _told(place: Place, what: str, done: Callable[[], int], *more: type[Exception]) -> Iterator[None]:
    """Errors of the library meanwhile, of which there may be more kinds, with the file and how much of it was read."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, *more) as error:
        raise ValueError(f"{place.name}: not a readable {what}: {error}; {done()} rows of it were read.") from None
