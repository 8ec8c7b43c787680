"""What fixes the order of the rows of a run, and whether a checkpoint stands in the same."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any, Final

from flags import as_word
from kinds import Kind
from limits import flat_values
from request import Config

from omni_data import Cursor, Packing, Part, TextTokenizer

SEPARATOR: Final = "+"


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
    facts = dict.fromkeys([*asked, *(fact for fact in ("packing", "seq_len", "chat", "media") if fact in kept)])
    differing = [fact for fact in facts if fact not in asked or asked[fact] not in (None, kept.get(fact))]
    if "data" in differing and (config.mix.changed or is_same_mix(asked["data"], kept.get("data"))):
        differing.remove("data")
    if not ("seq_len" in asked and "seq_len" in kept) and "seq_len" in differing:
        differing.remove("seq_len")  # Of packings that differ, one does not depend on it.
    return [
        f"{found} stands at a place in other data ({_tell_other(fact, config, kept, asked)}), which means "
        "nothing in this: give it what it had, or choose another --out."
        + (" Sources may join or leave with --mix.changed; the others go on." if fact == "data" else "")
        for fact in differing
    ]


def is_same_mix(asked: str, kept: str | None) -> bool:
    """Whether both name the same sources, in any order. Pure."""
    return kept is not None and sorted(asked.split(SEPARATOR)) == sorted(kept.split(SEPARATOR))


def tell_joining(parts: Sequence[Part] | None, kept: Mapping[str, Any]) -> str:
    """Which sources join, leave and go on from a checkpoint that `kept` is of; nothing if they are the same. Pure."""
    before: Sequence[str] = (kept.get("data") or "").split(SEPARATOR)
    now = {part.name: part.source.name for part in parts or ()}
    if not parts or not kept or {*before} == now.keys():
        return ""
    names = dict(zip(before, kept.get("flags", {}).get("data", ()), strict=False))
    told = {
        "join": [name for key, name in now.items() if key not in kept["known"]],
        "leave": [names.get(key, key) for key in before if key not in now],
        "go on": [name for key, name in now.items() if key in kept["known"]],
    }
    return "; ".join(f"{verb} {', '.join(which)}" for verb, which in told.items() if which)


def _tell_other(fact: str, config: Config, kept: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """How `fact` differs, by the flags that gave it. Pure."""
    flags = kept.get("flags", {})
    if fact == "chat":
        return f"{tell_chat(kept.get(fact))}, now {tell_chat(asked.get(fact))}"
    if fact == "media":
        return f"{tell_media(kept.get(fact))}, now {tell_media(asked.get(fact))}"
    if fact == "packing" and fact in flags:
        then, now = flat_values({fact: flags[fact]}), flat_values({fact: asdict(config.packing)})
        return "; ".join(_differ(name, then.get(name), now[name]) for name in now if now[name] != then.get(name))
    if fact not in ("data", "tokenizer"):
        return _differ(fact, kept.get(fact), asked.get(fact))
    then, now = as_word(flags.get(fact)), as_word(getattr(config, fact))
    return f"--{fact} {now} has other content now" if then == now else f"--{fact} {then}, now {now}"


def _differ(name: str, then: Any, now: Any) -> str:
    return f"--{name.replace('_', '-')} {as_word(then)}, now {as_word(now)}"


def tell_chat(told: str | None) -> str:
    """What fixes the tokens of chats, by the flags that gave it. Pure.

    >>> tell_chat('["last", {"enable_thinking": false}]')
    '--chat.learn last --chat.options enable_thinking=false'
    """
    if told is None:
        return "no chats"
    learn, options = json.loads(told)
    each = "".join(f" {name}={json.dumps(value)}" for name, value in options.items())
    return f"--chat.learn {learn}" + (f" --chat.options{each}" if each else "")


def tell_media(told: str | None) -> str:
    """What fixes the arrays of media, by the flags that gave it. Pure.

    >>> tell_media('{"fps": 2.0, "max_pixels": null}')
    '--media.fps 2.0 --media.max-pixels left out'
    """
    if told is None:
        return "no media"
    named = ((name.replace("_", "-"), value) for name, value in json.loads(told).items())
    return " ".join(f"--media.{name} {as_word(value)}" for name, value in named)


def name_positions(cursor: Cursor, kept: Mapping[str, Any]) -> Cursor:
    """The cursor of a checkpoint whose order is `kept`, of which the only source may not be named. Pure."""
    if "" not in cursor.positions:
        return cursor
    return replace(cursor, positions={kept["data"]: cursor.positions[""]})


def fingerprint_files(files: Mapping[str, bytes]) -> str:
    """A short digest of files by name. Pure."""
    return sha256(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()[:16]
