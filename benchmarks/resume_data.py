"""What it takes to go on at a record far inside a file, and how fast records are read: sized sources and streams.

    uv run benchmarks/resume_data.py --folder /disk/folder

For every format, one file of `--records` documents is written (and kept, for the next run). Then, as JSON:

- open_s: opening the source. A sized one finds all records; a compressed file it first decompresses, to a copy.
- open_again_s: the same once there is a copy.
- resume_s: from `stream_batches` with a cursor after record `--at`, in a source that is open, to its first batch.
- mb_per_s: decoding the first records in order, in 10^6 bytes of their text a second. shuffled_mb_per_s: in any order.
- skip_mb_per_s: of streams, the same without decoding them, as a shard does with the blocks that others take.
"""

import gzip
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from omni_data import (
    Cursor,
    Document,
    Position,
    Source,
    Streamed,
    Unread,
    builtin_corpus,
    open_source,
    permute,
    stream_batches,
    stream_source,
)
from omni_data.read import BLOCK

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Config:
    """What to measure, and where."""

    folder: Path
    """For the files."""
    records: int = 1_050_000
    """Documents in each file, of about 400 characters."""
    at: int = 1_000_000
    """Where to go on."""
    read: int = 100_000
    """Documents whose reading is timed."""
    formats: tuple[str, ...] = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow")
    """Which to measure."""


def main(config: Config) -> None:
    """Measure and print. Effect: writes files."""
    measured = {}
    for kind in config.formats:
        path = config.folder / f"{config.records}.{kind}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, config.records)
        measured[kind] = {
            "mb": round(path.stat().st_size / 1e6),
            "sized": measure_sized(path, config),
            "streamed": measure_streamed(path, config),
        }
        print(json.dumps({kind: measured[kind]}), flush=True)
    print(json.dumps(measured, indent=2))


def write(path: Path, count: int) -> None:
    """Effect: a file of so many documents, of the kind that its ending says."""
    texts = [text[:400] for text in builtin_corpus()]
    lines = (json.dumps({"text": f"{i} {text}"}).encode() + b"\n" for i, text in enumerate(islice(cycle(texts), count)))
    if path.suffix in (".parquet", ".arrow"):
        tables = (pa.table({"text": [json.loads(line)["text"] for line in lot]}) for lot in lots(lines, 65_536))
        first = next(tables)
        if path.suffix == ".parquet":
            with pq.ParquetWriter(path, first.schema) as out:
                for table in chain([first], tables):
                    out.write_table(table)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, first.schema) as out:
                for table in chain([first], tables):
                    out.write_table(table, max_chunksize=1000)
    elif path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            for lot in lots(lines, 1000):
                file.write(b"".join(lot))
    else:
        with gzip.open(path, "wb", 6) if path.suffix == ".gz" else path.open("wb") as file:
            for lot in lots(lines, 1000):
                file.write(b"".join(lot))


def lots(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Items, so many at a time. Pure."""
    while lot := list(islice(items, size)):
        yield lot


def measure_sized(path: Path, config: Config) -> dict[str, float]:
    """What a source of any record takes. Effect: reads the file, and makes a copy of a compressed one."""
    cache = config.folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    source, first = timed(lambda: open_source(str(path), cache=cache))
    source, again = timed(lambda: open_source(str(path), cache=cache))
    _, resume = timed(lambda: go_on(source, config.at))
    size, in_order = timed(lambda: sum(len(str(source[i])) for i in range(config.read)))
    chosen = [permute(i, len(source), (0,)) for i in range(config.read // 10)]
    some, shuffled = timed(lambda: sum(len(str(source[i])) for i in chosen))
    shutil.rmtree(cache, ignore_errors=True)
    speeds = {"mb_per_s": size / in_order / 1e6, "shuffled_mb_per_s": some / shuffled / 1e6}
    return rounded({"open_s": first, "open_again_s": again, "resume_s": resume, **speeds})


def measure_streamed(path: Path, config: Config) -> dict[str, float]:
    """What a stream takes. Effect: reads the file."""
    source, first = timed(lambda: stream_source(str(path)))
    block, done = divmod(config.at, BLOCK)
    # The state where the block begins that the record is in.
    [(_, state)] = islice(source.read(0, None), block * BLOCK - 1, block * BLOCK)
    _, resume = timed(lambda: go_on(source, [0, block, state, done]))
    items = islice(source.read(0, None), config.read)
    size, decoding = timed(lambda: sum(len(str(item.decode())) for item, _ in items if isinstance(item, Unread)))
    items = islice(source.read(0, None), config.read)
    _, skipping = timed(lambda: sum(1 for _ in items))
    speeds = {"mb_per_s": size / decoding / 1e6, "skip_mb_per_s": size / skipping / 1e6}
    return rounded({"open_s": first, "resume_s": resume, **speeds})


def go_on(source: Source[Document] | Streamed[Document], at: Any) -> None:
    """Effect: makes one batch from a place in the source on."""
    cursor = Cursor(1, {"": (Position(1, at),)})
    layout = {"shard": 0, "num_shards": 1, "rows": 1, "seq_len": 2048, "virtual_shards": 1, "shuffle": False}
    next(stream_batches(source, cursor, tokenize=encode_bytes, **layout))


def encode_bytes(text: str) -> list[int]:
    """The bytes of a text. Pure."""
    return list(text.encode())


def timed(f: Callable[[], T]) -> tuple[T, float]:
    """What `f` gives, and the seconds that it took."""
    start = time.perf_counter()
    return f(), time.perf_counter() - start


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """To four digits after the point, or to one if they are large. Pure."""
    return {name: round(figure, 4 if figure < 10 else 1) for name, figure in figures.items()}


if __name__ == "__main__":
    main(tyro.cli(Config))
