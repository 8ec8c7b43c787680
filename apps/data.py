"""The data of a run: its sources as parts of a mix, and what fixes the order of its rows."""

import re
from collections.abc import Callable, Sequence, Sized
from typing import Any, Final, TypeVar

from kinds import STREAM, Kind
from refusal import attempt
from request import Config

from omni_data import (
    Encode,
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

T = TypeVar("T")
SHOWN: Final = 5
"""Documents that are told of those that cannot be used."""
ALL: Final = 1000
"""Documents of a source that are all looked at before a run starts; of more only some are."""
_ELSEWHERE: Final = {
    "no field '.*'; there are .*'(messages|conversations)'": "Chats are what apps/sft.py trains on",
    "no conversation: fields are .*'text'": "Texts are what apps/pretrain.py trains on",
}
"""By what is wrong with a record, who would take it."""


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
    sources = [attempt(problems, _hinting, kind.open, spec) for spec in specs]
    if encode:
        for source in filter(None, sources):
            attempt(problems, _hinting, check_documents, source, encode, first=config.max_bad > 0 or kind.media)
    if config.max_bad and len(problems) > before:
        problems.append("--max-bad leaves out no first record, which says what a source is: it must be good.")
    read = [source for source in sources if source and len(problems) == before]
    keys = [attempt(problems, fingerprint, source, skip_bad=config.max_bad > 0) for source in read]
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
    sources = [attempt(problems, _hinting, kind.open, spec) for spec in config.eval.data]
    encode = kind.encoder(tokenizer, vocab_size) if sources and tokenizer else None
    count = config.eval.documents
    if count and any(not isinstance(source, Sized) for source in sources if source):
        problems.append(f"--eval.documents {count} is of sources that are counted: leave out {STREAM} or it.")
    limited = [beginning(source, count) if count and isinstance(source, Sized) else source for source in sources]
    if encode:
        for source in filter(None, limited):
            attempt(problems, _hinting, check_documents, source, encode, first=config.max_bad > 0)
    parts = [Part(source, 1.0, 1, None, encode) for source in limited if source]
    if parts:
        attempt(problems, _checked, parts)
    if problems:
        raise ValueError("\n".join(f"--eval.data: {problem}" for problem in problems))
    return tuple(parts)


def check_documents(source: Source[Any] | Streamed[Any], encode: Encode, *, first: bool) -> None:
    """Effect: reads some items of `source`. A first one that is bad is told alone: what is wrong with it, all have.

    Raises:
        ValueError: if no sample can be made of the first item; or, unless it is to be the `first` alone, of others
            among all if they are few, or 64 that are spread over the source.
    """
    made = mapped(source, encode)
    made[0] if isinstance(made, Sized) else first_of(made, 0)
    if first or not isinstance(made, Sized):
        return
    places, problems = range(len(made)) if len(made) <= ALL else spread(len(made)), list[str]()
    for i in places:
        attempt(problems, made.__getitem__, i)
    if problems:
        more = len(problems) - SHOWN
        told = [f"... and {more} more of the {len(places)} that were looked at."] if more > 0 else []
        told.append("--max-bad N leaves out up to N documents that cannot be used.")
        raise ValueError("\n".join(problems[:SHOWN] + told))


def _hinting(f: Callable[..., T], *args: Any, **how: Any) -> T:
    """What `f` returns; its complaint says of chats, or of texts, that something else trains on them."""
    try:
        return f(*args, **how)
    except ValueError as problem:
        hints = [hint for wrong, hint in _ELSEWHERE.items() if re.search(wrong, str(problem))]
        if not hints:
            raise
        raise ValueError(f"{problem}\n{hints[0]}: give it the same flags.") from problem
