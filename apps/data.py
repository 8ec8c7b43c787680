"""The data of a run: its sources as parts of a mix, what fixes the order of its rows, and the batches of one rank."""

from collections.abc import Generator, Mapping, Sequence, Sized
from dataclasses import replace
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

from kinds import STREAM, Kind
from preflight import attempt
from request import Config
from rows import Rows, collate
from share import make_sequence_group, share

from omni_data import (
    Cursor,
    Encode,
    NoRows,
    Packing,
    Part,
    Source,
    Stream,
    Streamed,
    TextTokenizer,
    beginning,
    fingerprint,
    mapped,
    parse_weight,
    prefetch,
    stream_batches,
    with_sources,
)
from omni_data.fingerprint import spread
from omni_data.mix import mix_problems
from omni_data.pack import Batch, pack_batch
from omni_data.read import first_of
from omni_mesh import Mesh, MeshSpec
from omni_models import ModelFacts

SEPARATOR = "+"


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


def open_parts(config: Config, kind: Kind, tokenizer: TextTokenizer | None, vocab_size: int | None) -> tuple[Part, ...]:
    """The sources that `config` names, with their weights; a cursor knows each by its fingerprint. Effect: reads files.

    Args:
        config: of the run.
        kind: what its records are.
        tokenizer: None if it could not be read.
        vocab_size: of the model, if that is known.

    Raises:
        ValueError: with everything that is wrong with them.
    """
    problems: list[str] = []
    specs, mix = config.data, config.mix
    for name, given in (("weights", mix.weights), ("epochs", mix.epochs)):
        if given and len(given) != len(specs):
            problems.append(f"mix.{name} has {len(given)} values for {len(specs)} sources of data: give each one.")
    weights = [attempt(problems, parse_weight, text) for text in mix.weights or ["1"] * len(specs)]
    sources = [attempt(problems, kind.open, spec) for spec in specs]
    encode = attempt(problems, kind.encoder, tokenizer, vocab_size) if tokenizer else None
    if encode:
        for source in filter(None, sources):
            attempt(problems, check_first, source, encode)
    keys = [attempt(problems, fingerprint, source, skip_bad=config.max_bad > 0) for source in sources if source]
    names = [spec.removeprefix(STREAM) for spec in specs]
    problems += [
        f"--data names {name} twice, whole and after {STREAM}: its loss has one name. Choose one of them."
        for name in dict.fromkeys(names)
        if {name, STREAM + name} <= {*specs}
    ]
    if not specs:
        problems.append("no source of data is named; `builtin` needs no file.")
    if problems and config.max_bad:
        problems.append("--max-bad leaves out no first record, which says what a source is: it must be good.")
    if problems:
        raise ValueError("\n".join(problems))
    epochs = [None if count == 0 else count for count in mix.epochs] or [None] * len(specs)
    found = zip(sources, weights, epochs, keys, strict=True)
    parts = [Part(s, weight, count, key, encode) for s, weight, count, key in found if s and weight is not None]
    return _checked(parts)


def _checked(parts: Sequence[Part]) -> tuple[Part, ...]:
    if problems := mix_problems(parts):
        raise ValueError("\n".join(problems))
    return tuple(parts)


def open_held_out(
    config: Config, kind: Kind, tokenizer: TextTokenizer | None, vocab_size: int | None
) -> tuple[Part, ...]:
    """The sources whose loss is told, each to be read once. Effect: reads files.

    Raises:
        ValueError: with everything that is wrong with them.
    """
    problems: list[str] = []
    sources = [attempt(problems, kind.open, spec) for spec in config.eval.data]
    encode = kind.encoder(tokenizer, vocab_size) if sources and tokenizer else None
    if encode:
        for source in filter(None, sources):
            attempt(problems, check_first, source, encode)
    count = config.eval.documents
    if count and any(not isinstance(source, Sized) for source in sources if source):
        problems.append("documents are of sources that are counted: leave it out, or leave out `stream:`.")
    limited = [beginning(source, count) if count and isinstance(source, Sized) else source for source in sources]
    parts = [Part(source, 1.0, 1, None, encode) for source in limited if source]
    if parts:
        attempt(problems, _checked, parts)
    if problems:
        raise ValueError("\n".join(f"eval.data: {problem}" for problem in problems))
    return tuple(parts)


def count_tokens(part: Part) -> int | None:
    """About how many tokens a source has, by 64 documents spread over it; None of a stream. Effect: reads them."""
    source, encode = part.source, part.encode
    if not isinstance(source, Sized) or encode is None:
        return None
    problems: list[str] = []
    samples = mapped(source, encode)
    lengths = [len(sample) for i in spread(len(source)) if (sample := attempt(problems, samples.__getitem__, i))]
    return round(sum(lengths) / max(1, len(lengths)) * len(source))


def check_first(source: Source[Any] | Streamed[Any], encode: Encode) -> None:
    """Raises `ValueError` if no sample can be made of the first item of `source`. Effect: reads it."""
    first = mapped(source, encode)
    if isinstance(first, Sized):
        first[0]
    else:
        first_of(first, 0)


def fix_order(
    config: Config, kind: Kind, parts: Sequence[Part] | None, tokenizer: TextTokenizer | None
) -> dict[str, Any]:
    """What fixes the rows of a step, beside the cursor and the batch; None is what cannot be told. Pure.

    Documents that are laid end to end may go on in rows of another length; what is packed otherwise may not.
    """
    packing = config.packing
    told = f"{packing.how}, {packing.max_len}, {packing.long}"
    told += f", {packing.cost}" if packing.cost != Packing().cost else ""
    return {
        "data": SEPARATOR.join(part.name for part in parts) if parts else None,
        "tokenizer": fingerprint_files(tokenizer.files) if tokenizer else None,
        "shuffle": config.shuffle,
        "seed": config.seed,
        **kind.told,
        **({"packing": told} if packing.how != "concat" or packing.max_len else {}),
        **({"seq_len": config.seq_len} if packing.how != "concat" else {}),
    }


def find_other_orders(config: Config, found: object, kept: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Why the place in the data that checkpoint `found` has means nothing in what is asked for now. Pure."""
    facts = dict.fromkeys([*asked, *(fact for fact in ("packing", "seq_len", "chat") if fact in kept)])
    differing = [fact for fact in facts if fact not in asked or asked[fact] not in (None, kept.get(fact))]
    if config.mix.changed and "data" in differing:
        differing.remove("data")
    return [
        f"{found} stands at a place in other data ({_tell_other(fact, config, kept, asked)}), which means "
        "nothing in this: give it the same data, tokenizer and seed, or choose another --out."
        + (" Sources may join or leave with --mix.changed; the others go on." if fact == "data" else "")
        for fact in differing
    ]


def _tell_other(fact: str, config: Config, kept: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """How `fact` differs: by the flag that gave it where it is a digest of files. Pure."""
    if fact not in ("data", "tokenizer"):
        return f"{fact} {kept.get(fact)}, now {asked.get(fact)}"
    then, now = (" ".join(_words(value)) for value in (kept.get("flags", {}).get(fact), getattr(config, fact)))
    if then == now:
        return f"{fact}: {now} has other content now"
    return f"{fact} {then}, now {now}"


def _words(value: Any) -> Sequence[str]:
    return value if isinstance(value, list | tuple) else [value or "left out"]


def name_positions(cursor: Cursor, kept: Mapping[str, Any]) -> Cursor:
    """The cursor of a checkpoint whose order is `kept`, of which the only source may not be named. Pure."""
    if "" not in cursor.positions:
        return cursor
    return replace(cursor, positions={kept["data"]: cursor.positions[""]})


def fingerprint_files(files: Mapping[str, bytes]) -> str:
    """A short digest of files by name. Pure."""
    return sha256(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()[:16]


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
    # Which all ranks have alike, also those that have nothing to read.
    known = with_sources(cursor, [part.name for part in run.parts], run.virtual_shards)
    return then_nothing(stream, known, rows * num_shards)


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
    return prefetch(collated(then_nothing(stream, start, run.micro * num_shards), config, run, mesh))


def then_nothing(stream: Stream[Batch], cursor: Cursor, rows: int) -> Stream[Batch | Over]:
    """The items of `stream`, and `Over` without end once it ended: other ranks may not be there yet. Pure.

    Args:
        stream: of one rank.
        cursor: before it.
        rows: of a batch of all ranks.
    """
    why = ""
    try:
        for item in stream:
            cursor = item[1]
            yield item
    except NoRows as problem:
        why = str(problem)
    while True:
        cursor = replace(cursor, rows=cursor.rows + rows)
        yield Over(why), cursor
