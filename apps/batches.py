"""The batches of one rank, of what a run trains on and of what it holds out."""

from collections.abc import Generator
from dataclasses import replace
from typing import Any, Final, NamedTuple, Protocol

from flags import by_flags
from redact import without_secrets
from request import Config
from rows import Rows, collate
from share import make_sequence_group, share

from omni_data import Cursor, NoRows, Part, Stream, prefetch, stream_batches, with_sources
from omni_data.pack import Batch, pack_batch
from omni_mesh import Mesh, MeshSpec
from omni_models import ModelFacts

TOLD_BAD: Final = 3
"""Documents that cannot be used and are told when a rank meets them; of others there is a count."""


class Over(NamedTuple):
    """There is no more data of a rank; and why, if there never was any."""

    why: str


class Reads(Protocol):
    """What is decided of the reading of data."""

    @property
    def parts(self) -> tuple[Part, ...]: ...
    @property
    def held_out(self) -> tuple[Part, ...]: ...
    @property
    def micro(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def virtual_shards(self) -> int: ...
    @property
    def spec(self) -> MeshSpec: ...
    @property
    def facts(self) -> ModelFacts: ...
    @property
    def device(self) -> str: ...


def read_batches(config: Config, run: Reads, cursor: Cursor, mesh: Mesh) -> Generator[tuple[Rows, Cursor], None, None]:
    """The microbatches of this rank from `cursor` on, some of them made ahead. Effect: collective; reads the data, on
    one of the ranks that share rows."""
    group = make_sequence_group(mesh)
    if group is None:
        return prefetch(collated(_read(config, run, cursor, mesh), config, run, mesh))
    first = mesh.tokens.get_local_rank("sp") == 0
    return collated(share(prefetch(_read(config, run, cursor, mesh)) if first else None, group), config, run, mesh)


def collated(
    stream: Stream[Batch | Over], config: Config, run: Reads, mesh: Mesh
) -> Generator[tuple[Rows, Cursor], None, None]:
    """The items of `stream` as a step of this rank takes them; `Over` becomes rows of padding."""
    how: dict[str, Any] = {"part": mesh.tokens.get_local_rank("sp"), "parts": run.spec.sp, "pin": run.device == "cuda"}
    for batch, cursor in stream:
        if isinstance(batch, Over):
            padding = pack_batch([[]] * run.micro, config.seq_len)
            yield replace(collate(padding, run.facts.vocab_size, **how), over=True, why=batch.why), cursor
        else:
            yield collate(batch, run.facts.vocab_size, **how), cursor


def _read(config: Config, run: Reads, cursor: Cursor, mesh: Mesh) -> Stream[Batch | Over]:
    rows, num_shards = run.micro, run.spec.dp
    stream = stream_batches(
        run.parts,
        cursor,
        shard=mesh.tokens.get_local_rank("dp"),
        num_shards=num_shards,
        rows=rows,
        seq_len=config.seq_len,
        packing=config.packing,
        until=config.mix.until,
        virtual_shards=run.virtual_shards,
        shuffle=config.shuffle,
        seed=config.seed,
        max_bad=config.max_bad,
        workers=run.workers,
    )
    stream = tell_left_out(stream, config.max_bad)
    # Which all ranks have alike, also those that have nothing to read.
    known = with_sources(cursor, [part.name for part in run.parts], run.virtual_shards)
    return then_nothing(stream, known, rows * num_shards, config.seq_len)


def read_held_out(config: Config, run: Reads, mesh: Mesh) -> Generator[tuple[Rows, Cursor], None, None]:
    """The microbatches of this rank of what is held out, and then batches of padding. Effect: reads the data.

    No document that fits in a row is cut, so what is computed of each does not depend on how many ranks read them.
    """
    start, num_shards = Cursor(), run.spec.dp
    stream = stream_batches(
        run.held_out,
        start,
        shard=mesh.tokens.get_local_rank("dp"),
        num_shards=num_shards,
        rows=run.micro,
        seq_len=config.seq_len,
        packing=replace(config.packing, how="fit"),
        until="all",
        virtual_shards=num_shards,
        shuffle=False,
        max_bad=config.max_bad,
    )
    return prefetch(collated(then_nothing(stream, start, run.micro * num_shards, config.seq_len), config, run, mesh))


def tell_left_out(stream: Stream[Batch], most: int) -> Stream[Batch]:
    """The items of `stream`. Effect: prints why the first documents that it leaves out cannot be used, of `most`."""
    count = 0
    for batch, cursor in stream:
        for problem in batch.problems:
            count += 1
            if count <= TOLD_BAD:
                print(without_secrets(by_flags(f"left out, {count} of --max-bad {most}: {problem}")), flush=True)
            if count == TOLD_BAD:
                print("Others that are left out on this rank are counted only, as documents_bad.", flush=True)
        yield batch, cursor


def then_nothing(stream: Stream[Batch], cursor: Cursor, rows: int, seq_len: int) -> Stream[Batch | Over]:
    """The items of `stream`, and `Over` without end once it ended: other ranks may not be there yet. Pure.

    Args:
        stream: of one rank.
        cursor: before it.
        rows: of a batch of all ranks.
        seq_len: tokens of a row.
    """
    why = ""
    try:
        for item in stream:
            cursor = item[1]
            yield item
    except NoRows as problem:
        why = str(problem)
    while True:
        cursor = cursor.after(rows, seq_len)
        yield Over(why), cursor
