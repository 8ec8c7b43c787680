"""The batches of one rank, of what a run trains on and of what it holds out."""

from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import numpy as np
import torch.distributed as dist
from flags import by_flags
from look import Looked, look, without_media
from numpy.typing import NDArray
from redact import without_secrets
from request import Config
from rows import Rows, collate
from share import make_sequence_group, share
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from watch import say

from omni_data import Cursor, NoRows, Part, Stream, prefetch, stream_batches, with_sources
from omni_data.pack import Batch, pack_batch
from omni_mesh import Mesh, MeshSpec, peers
from omni_models import ModelFacts, Routed, decoder_specs, route_targets
from omni_parallel import ParallelPlan

T = TypeVar("T")
TOLD_BAD: Final = 3
"""Documents that cannot be used and are told when a rank meets them; of others there is a count."""


class Over(NamedTuple):
    """There is no more data of a rank; and why, if there never was any."""

    why: str


Item = Batch | Looked | Over


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
    def model(self) -> PreTrainedModel: ...
    @property
    def facts(self) -> ModelFacts: ...
    @property
    def plan(self) -> ParallelPlan: ...
    @property
    def device(self) -> str: ...


def read_batches(config: Config, run: Reads, cursor: Cursor, mesh: Mesh) -> Generator[tuple[Rows, Cursor], None, None]:
    """The microbatches of this rank from `cursor` on, some of them made ahead. Effect: collective; reads the data, on
    one of the ranks that share rows."""
    group = make_sequence_group(mesh)
    if group is None:
        return prefetch(collated(_read(config, run, cursor, mesh), config, run, mesh))
    first = mesh.tokens.get_local_rank("sp") == 0
    read = prefetch(_read(config, run, cursor, mesh)) if first else None
    return collated(share(read, group, tell=lambda item: (without_media(item[0]), item[1])), config, run, mesh)


def collated(
    stream: Stream[Item], config: Config, run: Reads, mesh: Mesh
) -> Generator[tuple[Rows, Cursor], None, None]:
    """The items of `stream` as a step of this rank takes them; `Over` becomes rows of padding."""
    ranks = peers(run.spec, dist.get_rank(), "sp")
    how: dict[str, Any] = {"part": mesh.tokens.get_local_rank("sp"), "ranks": ranks, "pin": run.device == "cuda"}
    number, dp = mesh.tokens.get_local_rank("dp"), run.spec.dp
    for item, cursor in stream:
        over = isinstance(item, Over)
        batch = _looked(pack_batch([[]] * run.micro, config.seq_len), run) if over else item
        rows = collate(batch, run.facts.vocab_size, **how)
        if isinstance(batch, Looked):
            # Which rows they are of all that were ever read: what is drawn for them is the same on any mesh.
            rows_B = cursor.rows + number + dp * np.arange(-run.micro, 0)
            rows = replace(rows, routed=route(batch, run.model.config, how, rows_B=rows_B, seed=config.seed))
        yield (replace(rows, over=True, why=item.why) if over else rows), cursor


def route(
    rows: Looked, config: PreTrainedConfig, how: Mapping[str, Any], *, rows_B: NDArray[np.int64], seed: int
) -> dict[str, Routed]:
    """By decoder, what this rank has of the outputs in `rows`, which are cut as `collate` is told how. Pure."""
    batch, cut = rows.batch, {"index": how["part"], "count": len(how["ranks"])}
    told = {**cut, "learn_BS": rows.learn_BS, "rows_B": rows_B, "seed": seed}
    return route_targets(config, batch.tokens_BS, batch.segments_BS, rows.targets, **told)


def _looked(batch: Batch, run: Reads) -> Batch | Looked:
    """`batch` as it is, or as a model is shown it that has encoders, which encode for all ranks, or decoders."""
    return look(batch, run.model) if run.plan.encoders or decoder_specs(run.model.config) else batch


def _read(config: Config, run: Reads, cursor: Cursor, mesh: Mesh) -> Stream[Item]:
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
    stream = ((_looked(batch, run), after) for batch, after in tell_left_out(stream, config.max_bad))
    # Which all ranks have alike, also those that have nothing to read.
    known = with_sources(cursor, [part.name for part in run.parts], run.virtual_shards)
    return then_nothing(stream, known, rows * num_shards, config.seq_len)


def read_held_out(config: Config, run: Reads, mesh: Mesh) -> Generator[tuple[Rows, Cursor], None, None]:
    """The microbatches of this rank of what is held out, and then batches of padding. Effect: reads the data.

    No document that fits in a row is cut, so what is computed of each does not depend on how many ranks read them.
    Ranks that share rows all read them, and the first of them owns their media.
    """
    start, num_shards, first = Cursor(), run.spec.dp, mesh.tokens.get_local_rank("sp") == 0
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
    stream = ((_looked(batch, run), after) for batch, after in stream)
    stream = stream if first else ((without_media(batch), after) for batch, after in stream)
    return prefetch(collated(then_nothing(stream, start, run.micro * num_shards, config.seq_len), config, run, mesh))


def tell_left_out(stream: Stream[Batch], most: int) -> Stream[Batch]:
    """The items of `stream`. Effect: prints why the first documents that it leaves out cannot be used, of `most`."""
    count = 0
    for batch, cursor in stream:
        for problem in batch.problems:
            count += 1
            if count <= TOLD_BAD:
                say(without_secrets(by_flags(f"left out, {count} of --max-bad {most}: {problem}")))
            if count == TOLD_BAD:
                say("Others that are left out on this rank are counted only, as documents_bad.")
        yield batch, cursor


def then_nothing(stream: Stream[T], cursor: Cursor, rows: int, seq_len: int) -> Stream[T | Over]:
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
