"""Documents in a column: parquet files, and datasets of the `datasets` library.

A parquet file can only be decoded a row group at a time. The last ones used are kept, within `CACHE_BYTES`; a shuffled
run over more than that decodes a whole group for most documents. For such data, `hf:` converts once to Arrow files,
which are mapped into memory and give any document at once.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from omni_data.document import Document, document_of, missing_field

CACHE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class ParquetRows:
    """The rows of some parquet files, in order; the document is in `field`.

    Attributes:
        stops: for each row group, how many rows there are up to its end.
        read_group: the column of the row group with that number.
    """

    paths: tuple[Path, ...]
    field: str
    stops: tuple[int, ...]
    read_group: Callable[[int], Sequence[Any]]

    @property
    def name(self) -> str:
        return str(self.paths[0]) if len(self.paths) == 1 else f"{self.paths[0]} and {len(self.paths) - 1} more"

    def __len__(self) -> int:
        return self.stops[-1]

    def __getitem__(self, i: int, /) -> Document:
        i = range(len(self))[i]
        group = bisect_right(self.stops, i)
        row = i - (self.stops[group - 1] if group else 0)
        try:
            return document_of({self.field: self.read_group(group)[row].as_py()}, self.field)
        except ValueError as error:
            raise ValueError(f"{self.name}: row {i}: {error}") from None

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickled as how to open it: the row groups in memory stay behind."""
        return open_parquet, (self.paths, self.field)


class _Rows(Protocol):
    """What is used of `datasets.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True, eq=False)
class DatasetRows:
    """The rows of a `datasets.Dataset`; the document is in `field`."""

    name: str
    field: str
    rows: _Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int, /) -> Document:
        try:
            return document_of(self.rows[i], self.field)
        except ValueError as error:
            raise ValueError(f"{self.name}: row {i}: {error}") from None


def open_parquet(paths: Sequence[Path], field: str) -> ParquetRows:
    """The documents in `field` of these files. Effect: reads their footers.

    Raises:
        ValueError: if one is not a parquet file, has no rows, or no such field.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups: list[tuple[Path, int]] = []
    stops, largest, total = [], 1, 0
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                names, metadata = file.schema_arrow.names, file.metadata
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not a readable parquet file: {error}") from None
        if field not in names:
            raise ValueError(f"{path}: {missing_field(field, names)}")
        if not metadata.num_rows:
            raise ValueError(f"{path}: no rows.")
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            groups.append((path, index))
            total += group.num_rows
            stops.append(total)
            largest = max(largest, group.total_byte_size)

    @lru_cache(maxsize=max(1, CACHE_BYTES // largest))
    def read_group(number: int) -> Sequence[Any]:
        path, index = groups[number]
        try:
            with pq.ParquetFile(path) as file:
                return file.read_row_group(index, columns=[field]).column(0)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: row group {index} cannot be read: {error}") from None

    return ParquetRows(tuple(paths), field, tuple(stops), read_group)


def parse_hub(spec: str) -> tuple[str, str | None, str]:
    """Name, configuration and split of `NAME[:CONFIG][@SPLIT]`.

    >>> parse_hub("wikitext:wikitext-2-raw-v1@validation")
    ('wikitext', 'wikitext-2-raw-v1', 'validation')
    >>> parse_hub("org/name")
    ('org/name', None, 'train')
    """
    body, _, split = spec.partition("@")
    name, _, config = body.partition(":")
    return name, config or None, split or "train"


def open_hub(spec: str, field: str) -> DatasetRows:
    """The documents in `field` of a dataset of the hub, or of a local folder that the hub's loader understands.

    Effect: downloads it, once, and converts it to Arrow files in the cache of `datasets`.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name, config, split = parse_hub(spec)
    try:
        rows = load_dataset(name, config, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(
            f"hf:{spec}: cannot load dataset {name!r}, configuration {config!r}, split {split!r}: {error}\n"
            "The spelling is hf:NAME[:CONFIG][@SPLIT]. Without network, download it before, or name a local file."
        ) from error
    return _dataset_rows(f"hf:{spec}", rows, field)


def is_saved_dataset(path: Path) -> bool:
    """Whether `path` is a folder written by `save_to_disk`. Effect: looks at the disk."""
    whole = (path / "state.json").exists() and (path / "dataset_info.json").exists()
    return whole or (path / "dataset_dict.json").exists()


def open_saved_dataset(path: Path, field: str) -> DatasetRows:
    """The documents in `field` of a folder written by `save_to_disk`; of its split `train`, if it has splits.

    Effect: maps its files into memory.
    """
    from datasets import load_from_disk

    folder = path / "train" if (path / "dataset_dict.json").exists() else path
    if not folder.is_dir():
        splits = ", ".join(sorted(p.name for p in path.iterdir() if p.is_dir()))
        raise ValueError(f"{path}: no split 'train'; name one of its folders instead: {splits}.")
    return _dataset_rows(str(path), load_from_disk(str(folder)), field)


def _dataset_rows(name: str, rows: Any, field: str) -> DatasetRows:
    """`rows` as a source of its column `field` alone, so that reading a document decodes nothing else."""
    if field not in rows.column_names:
        raise ValueError(f"{name}: {missing_field(field, rows.column_names)}")
    if not len(rows):
        raise ValueError(f"{name}: no rows.")
    return DatasetRows(name, field, rows.select_columns(field))
