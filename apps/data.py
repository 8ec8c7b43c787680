"""The data of a run: its sources as parts of a mix, what fixes the order of its rows, and the batches of one rank."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, Protocol

from preflight import attempt
from request import Config

from omni_data import (
    Cursor,
    Part,
    Stream,
    TextTokenizer,
    fingerprint,
    open_source,
    parse_weight,
    prefetch,
    stream_batches,
)
from omni_data.pack import Batch, pack_batch

SEPARATOR = "+"


class Reads(Protocol):
    """What is decided of the reading of data."""

    @property
    def parts(self) -> tuple[Part, ...]: ...
    @property
    def tokenizer(self) -> TextTokenizer: ...
    @property
    def micro(self) -> int: ...
    @property
    def virtual_shards(self) -> int: ...


def open_parts(config: Config) -> tuple[Part, ...]:
    """The sources that `config` names, with their weights; a cursor knows each by its fingerprint. Effect: reads files.

    Raises:
        ValueError: with everything that is wrong with them.
    """
    problems: list[str] = []
    specs, mix = config.data, config.mix
    for name, given in (("weights", mix.weights), ("epochs", mix.epochs)):
        if given and len(given) != len(specs):
            problems.append(f"mix.{name} has {len(given)} values for {len(specs)} sources of data: give each one.")
    weights = [attempt(problems, parse_weight, text) for text in mix.weights or ["1"] * len(specs)]
    sources = [attempt(problems, open_source, spec, field=config.field) for spec in specs]
    keys = [attempt(problems, fingerprint, source, skip_bad=config.max_bad > 0) for source in sources if source]
    if not specs:
        problems.append("no source of data is named; `builtin` needs no file.")
    if problems:
        raise ValueError("\n".join(problems))
    epochs = [None if count == 0 else count for count in mix.epochs] or [None] * len(specs)
    found = zip(sources, weights, epochs, keys, strict=True)
    return tuple(Part(source, weight, count, key) for source, weight, count, key in found if source and weight)


def fix_order(config: Config, parts: Sequence[Part] | None, tokenizer: TextTokenizer | None) -> dict[str, Any]:
    """What fixes the rows of a step, beside the cursor and the batch; None is what cannot be told. Pure.

    Documents that are laid end to end may go on in rows of another length; what is packed otherwise may not.
    """
    packing = config.packing
    told = f"{packing.how}, {packing.max_len}, {packing.long}"
    return {
        "data": SEPARATOR.join(part.name for part in parts) if parts else None,
        "tokenizer": fingerprint_files(tokenizer.files) if tokenizer else None,
        "shuffle": config.shuffle,
        "seed": config.seed,
        **({"packing": told} if packing.how != "concat" or packing.max_len else {}),
        **({"seq_len": config.seq_len} if packing.how != "concat" else {}),
    }


def find_other_orders(config: Config, found: object, kept: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Why the place in the data that checkpoint `found` has means nothing in what is asked for now. Pure."""
    facts = dict.fromkeys([*asked, *(fact for fact in ("packing", "seq_len") if fact in kept)])
    differing = [fact for fact in facts if fact not in asked or asked[fact] not in (None, kept.get(fact))]
    if config.mix.changed and "data" in differing:
        differing.remove("data")
    return [
        f"{found} stands at a place in other data ({fact} {kept.get(fact)}, now {asked.get(fact)}), which means "
        "nothing in this: give it the same data, tokenizer and seed, or choose another --out."
        + (" Sources may join or leave with --mix.changed True; the others go on." if fact == "data" else "")
        for fact in differing
    ]


def name_positions(cursor: Cursor, kept: Mapping[str, Any]) -> Cursor:
    """The cursor of a checkpoint whose order is `kept`, of which the only source may not be named. Pure."""
    if "" not in cursor.positions:
        return cursor
    return replace(cursor, positions={kept["data"]: cursor.positions[""]})


def fingerprint_files(files: Mapping[str, bytes]) -> str:
    """A short digest of files by name. Pure."""
    return sha256(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()[:16]


def read_batches(
    config: Config, run: Reads, cursor: Cursor, *, shard: int, num_shards: int
) -> Generator[tuple[Batch, Cursor], None, None]:
    """The microbatches of one rank from `cursor` on, some of them made ahead. Effect: reads the data."""
    rows = run.micro
    stream = stream_batches(
        run.parts,
        cursor,
        shard=shard,
        num_shards=num_shards,
        rows=rows,
        seq_len=config.seq_len,
        tokenize=run.tokenizer.encode,
        eos_id=run.tokenizer.eos_id,
        packing=config.packing,
        until=config.mix.until,
        virtual_shards=run.virtual_shards,
        shuffle=config.shuffle,
        seed=config.seed,
        max_bad=config.max_bad,
        workers=config.workers,
    )
    return prefetch(then_padding(stream, cursor, rows, num_shards, config.seq_len))


def then_padding(stream: Stream[Batch], cursor: Cursor, rows: int, num_shards: int, seq_len: int) -> Stream[Batch]:
    """The items of `stream`, and once it ends, batches of padding only: other ranks may not be there yet. Pure."""
    for item in stream:
        cursor = item[1]
        yield item
    while True:
        cursor = replace(cursor, rows=cursor.rows + rows * num_shards)
        yield pack_batch([[]] * rows, seq_len), cursor
