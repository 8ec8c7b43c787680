"""The data of a run: its sources as parts of a mix, and what fixes the order of its rows."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from hashlib import sha256
from typing import Any

from kinds import STREAM, Kind
from preflight import attempt
from request import Config

from omni_data import (
    Cursor,
    Encode,
    Packing,
    Part,
    Source,
    Streamed,
    TextTokenizer,
    beginning,
    fingerprint,
    mapped,
    parse_weight,
)
from omni_data.fingerprint import spread
from omni_data.mix import mix_problems
from omni_data.read import first_of

SEPARATOR = "+"


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
    attempt(problems, check_long, config)
    specs, mix = config.data, config.mix
    for name, given in (("weights", mix.weights), ("epochs", mix.epochs)):
        if given and len(given) != len(specs):
            problems.append(f"--mix.{name} has {len(given)} values for {len(specs)} sources of data: give each one.")
    weights = [attempt(problems, parse_weight, text) for text in mix.weights or ["1"] * len(specs)]
    encode = attempt(problems, kind.encoder, tokenizer, vocab_size) if tokenizer else None
    before = len(problems)
    sources = [attempt(problems, kind.open, spec) for spec in specs]
    if encode:
        for source in filter(None, sources):
            attempt(problems, check_first, source, encode)
    if config.max_bad and len(problems) > before:
        problems.append("--max-bad leaves out no first record, which says what a source is: it must be good.")
    keys = [attempt(problems, fingerprint, source, skip_bad=config.max_bad > 0) for source in sources if source]
    names = [spec.removeprefix(STREAM) for spec in specs]
    problems += [
        f"--data names {name} twice, whole and after {STREAM}: its loss has one name. Choose one of them."
        for name in dict.fromkeys(names)
        if {name, STREAM + name} <= {*specs}
    ]
    if not specs:
        problems.append("no source of data is named; `builtin` needs no file.")
    if problems:
        raise ValueError("\n".join(problems))
    epochs = [None if count == 0 else count for count in mix.epochs] or [None] * len(specs)
    found = zip(sources, weights, epochs, keys, strict=True)
    parts = [Part(s, weight, count, key, encode) for s, weight, count, key in found if s and weight is not None]
    return _checked(parts)


def check_long(config: Config) -> None:
    """Raises `ValueError` if what is said of long documents can mean nothing. Pure."""
    packing = config.packing
    if packing.how != "concat" and (packing.max_len or 0) > config.seq_len:
        raise ValueError(
            f"--packing.max-len {packing.max_len} is longer than a row, and with --packing.how {packing.how} no "
            f"document is: take --seq-len {packing.max_len}, or leave it out, which means {config.seq_len}."
        )
    if packing.how == "concat" and packing.long != "split" and packing.max_len is None:
        raise ValueError(
            f"--packing.long {packing.long} has no meaning where documents of any length are laid end to end: say how "
            "long they may be by --packing.max-len, or choose --packing.how fit."
        )


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
        raise ValueError("\n".join(f"--eval.data: {problem}" for problem in problems))
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
