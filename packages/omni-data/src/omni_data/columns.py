"""Records in columns: parquet files, and datasets of the `datasets` library.

A parquet file can only be decoded a row group at a time. The last ones used are kept, within `CACHE_BYTES`; a shuffled
run over more than that decodes a whole group for most records. For such data, `hf:` converts once to Arrow files,
which are mapped into memory and give any record at once.

Images and sounds stay what the file holds, as a rule `{"bytes": ..., "path": ...}`: nothing decodes them here.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, TypeVar

from omni_data.document import Record, check_fields

T = TypeVar("T")

CACHE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class ParquetRows:
    """The rows of some parquet files, in order.

    Attributes:
        names: what errors call the files.
        columns: the fields of a record; None is all of a file.
        stops: for each row group, how many rows there are up to its end.
        file_stops: for each file, the same.
        read_group: the columns, by name, of the row group with that number.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    columns: tuple[str, ...] | None
    stops: tuple[int, ...]
    file_stops: tuple[int, ...]
    read_group: Callable[[int], Mapping[str, Sequence[Any]]]

    @property
    def name(self) -> str:
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} and {len(self.names) - 1} more"

    def __len__(self) -> int:
        return self.stops[-1]

    def __getitem__(self, i: int, /) -> Record:
        i = range(len(self))[i]
        group = bisect_right(self.stops, i)
        row = i - (self.stops[group - 1] if group else 0)
        return row_of(self.read_group(group), row)

    def place(self, i: int) -> str:
        i = range(len(self))[i]
        file = bisect_right(self.file_stops, i)
        return f"{self.names[file]}: row {i - (self.file_stops[file - 1] if file else 0)}"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickled as how to open it: the row groups in memory stay behind."""
        return open_parquet, (self.paths, self.columns, self.names)


class _Rows(Protocol):
    """What is used of a `datasets.Dataset` that gives tables of Arrow."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


@dataclass(frozen=True, slots=True, eq=False)
class DatasetRows:
    """The rows of a `datasets.Dataset`.

    Attributes:
        features: what the columns hold, with images and sounds left as they are.
    """

    name: str
    rows: _Rows
    features: Any

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int, /) -> Record:
        return example_of(self.features, self.rows[range(len(self))[i]])


def open_parquet(
    paths: Sequence[Path], columns: Sequence[str] | None = None, names: Sequence[str] | None = None
) -> ParquetRows:
    """The rows of these files. Effect: reads their footers.

    Args:
        columns: those to read; None is all of them.
        names: what errors call the files; None is their paths.

    Raises:
        ValueError: if one is not a parquet file, has no rows, or lacks some of `columns`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [str(path) for path in paths] if names is None else names
    groups: list[tuple[int, int]] = []
    sizes: list[int] = []
    rows: list[int] = []
    largest = 1
    for number, (path, name) in enumerate(zip(paths, names, strict=True)):
        try:
            with pq.ParquetFile(path) as file:
                fields, metadata = file.schema_arrow.names, file.metadata
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{name}: not a readable parquet file: {error}") from None
        try:
            check_fields(columns or (), fields)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if not metadata.num_rows:
            raise ValueError(f"{name}: no rows.")
        rows.append(metadata.num_rows)
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            groups.append((number, index))
            sizes.append(group.num_rows)
            largest = max(largest, group.total_byte_size)
    wanted = None if columns is None else list(columns)

    @lru_cache(maxsize=max(1, CACHE_BYTES // largest))
    def read_group(number: int) -> Mapping[str, Sequence[Any]]:
        at, index = groups[number]
        try:
            with pq.ParquetFile(paths[at]) as file:
                table = file.read_row_group(index, columns=wanted)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{names[at]}: row group {index} cannot be read: {error}") from None
        return dict(zip(table.column_names, table.columns, strict=True))

    stops, chosen = tuple(accumulate(sizes)), None if wanted is None else tuple(wanted)
    return ParquetRows(tuple(paths), tuple(names), chosen, stops, tuple(accumulate(rows)), read_group)


def row_of(columns: Mapping[str, Sequence[Any]], row: int) -> Record:
    """A row of some columns of Arrow, as values of Python. Pure."""
    return {name: column[row].as_py() for name, column in columns.items()}


def example_of(features: Any, row: Any) -> Record:
    """The record of a table of Arrow that has one row, which holds what `features` say. Pure."""
    return features.decode_example(row.to_pylist()[0])


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


def open_hub(spec: str, columns: Sequence[str] | None = None) -> DatasetRows:
    """The rows of a dataset of the hub, or of a local folder that the hub's loader understands.

    Effect: downloads it, once, and converts it to Arrow files in the cache of `datasets`.
    """
    from datasets import load_dataset

    return _dataset_rows(f"hf:{spec}", load_hub(spec, load_dataset), columns)


def load_hub(spec: str, load: Callable[..., T]) -> T:
    """What `load` gives for the name, the configuration and the split (`split=`) of `spec`. Effect: that of it.

    Raises:
        ValueError: if there is no such dataset.
    """
    from datasets.exceptions import DatasetsError

    name, config, split = parse_hub(spec)
    try:
        return load(name, config, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(
            f"hf:{spec}: cannot load dataset {name!r}, configuration {config!r}, split {split!r}: {error}\n"
            "The spelling is hf:NAME[:CONFIG][@SPLIT]. Without network, name a folder of its files, downloaded before."
        ) from error


def is_saved_dataset(path: Path) -> bool:
    """Whether `path` is a folder written by `save_to_disk`. Effect: looks at the disk."""
    whole = (path / "state.json").exists() and (path / "dataset_info.json").exists()
    return whole or (path / "dataset_dict.json").exists()


def open_saved_dataset(path: Path, columns: Sequence[str] | None = None) -> DatasetRows:
    """The rows of a folder written by `save_to_disk`; of its split `train`, if it has splits.

    Effect: maps its files into memory.
    """
    from datasets import load_from_disk

    folder = path / "train" if (path / "dataset_dict.json").exists() else path
    if not folder.is_dir():
        splits = ", ".join(sorted(p.name for p in path.iterdir() if p.is_dir()))
        raise ValueError(f"{path}: no split 'train'; name one of its folders instead: {splits}.")
    return _dataset_rows(str(path), load_from_disk(str(folder)), columns)


def open_arrow(path: Path, name: str, columns: Sequence[str] | None = None) -> DatasetRows:
    """The rows of an Arrow file in the stream format, which `datasets` writes. Effect: maps it into memory.

    Raises:
        ValueError: if it is none, or was cut, has no rows, or lacks some of `columns`.
    """
    import pyarrow as pa
    from datasets import Dataset

    try:
        rows = Dataset.from_file(str(path))
    except (pa.ArrowException, OSError, ValueError) as error:
        with path.open("rb") as file:
            footed = file.read(6) == b"ARROW1"
        hint = " It is in Arrow's file format (Feather): write it as parquet, or with `save_to_disk`." if footed else ""
        raise ValueError(f"{name}: not a readable Arrow stream: {error}.{hint}") from None
    return _dataset_rows(name, rows, columns)


def _dataset_rows(name: str, rows: Any, columns: Sequence[str] | None) -> DatasetRows:
    """`rows` as a source of `columns` alone, so that reading a record decodes nothing else."""
    try:
        check_fields(columns or (), rows.column_names)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not len(rows):
        raise ValueError(f"{name}: no rows.")
    rows = rows if columns is None else rows.select_columns(list(columns))
    return DatasetRows(name, rows.with_format("arrow"), undecoded(rows.features))


def undecoded(feature: Any) -> Any:
    """A feature of `datasets` whose media are not decoded. JSON that is stored as text is, being no media."""
    from datasets import Json

    if isinstance(feature, dict):
        return type(feature)({name: undecoded(inner) for name, inner in feature.items()})
    if isinstance(feature, list):
        return [undecoded(inner) for inner in feature]
    if hasattr(feature, "feature"):
        return replace(feature, feature=undecoded(feature.feature))
    is_media = getattr(feature, "decode", False) and type(feature) is not Json
    return replace(feature, decode=False) if is_media else feature
