"""How long the data of a run last, told before it starts: about, by 64 documents spread over each source."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cache
from itertools import count
from math import inf
from typing import Final, Literal

from refusal import attempt

from omni_data import Packing, Part, fit_rows, mapped
from omni_data.fingerprint import spread
from omni_data.mix import pick_part
from omni_data.sample import limit_length

Pieces = Sequence[Sequence[int]]
"""Of each document that was looked at, the tokens of what becomes of it: of its parts, or of none if it is dropped."""
ENOUGH = 512
"""Documents of which the rest makes no other rows, one by one."""


FEW: Final = 20_000
"""Rows of which each is looked at, as the mean does not tell when the first virtual shard is through."""
LOW: Final = 0.5
"""The fill below which it is told what makes it higher."""


@dataclass(frozen=True, slots=True)
class Lasting:
    """How long data last.

    Attributes:
        steps: until they end; without an end, those of an epoch.
        fill: the share of positions that are no padding, until then.
        ends: whether they do.
    """

    steps: int
    fill: float
    ends: bool


def look(part: Part, packing: Packing, seq_len: int) -> Pieces | None:
    """What becomes of documents of a source; None if that is not known, as of streams. Effect: reads them."""
    source, encode = part.source, part.encode
    if not isinstance(source, Sized) or encode is None:
        return None
    samples, limit = mapped(source, encode), packing.limit(seq_len)
    found = (attempt([], lambda i=i: limit_length(samples[i], limit, packing.long)) for i in spread(len(source)))
    pieces = [[len(one) for one in each if len(one)] for each in found if each is not None]
    return pieces if any(pieces) else None


def estimate(
    parts: Sequence[Part],
    looked: Sequence[Pieces | None],
    *,
    packing: Packing,
    until: Literal["first", "all"],
    batch: int,
    seq_len: int,
    shards: int,
) -> Lasting | None:
    """About how long a mix lasts; None if that is not known. Pure.

    Args:
        parts: of the mix.
        looked: by `look`, of each.
        packing: how documents share rows.
        until: whether it ends with its first source or with all.
        batch: rows of a step.
        seq_len: tokens of a row.
        shards: virtual ones.
    """
    ends = [part.epochs is not None for part in parts]
    known = [pieces for pieces in looked if pieces]
    weights = [part.weight for part in parts if not isinstance(part.weight, tuple)]
    if len(known) < len(parts) or len(weights) < len(parts) or (len(parts) > 1 and not any(ends)):
        return None
    if len(parts) > 1 and until == "all" and not all(ends):
        return None
    # Without an end, an epoch goes on in the rows of the one before, as if there were one virtual shard.
    dealt = [
        _deal(part, pieces, packing.how, seq_len, shards if part.epochs else 1)
        for part, pieces in zip(parts, known, strict=True)
    ]
    rows, tokens = zip(*dealt, strict=True)
    shares = [weight / sum(weights) for weight in weights]
    if until == "all" or len(parts) == 1:
        each = [sum(one) for one in zip(*rows, strict=True)]
    else:
        limited = [(one, share) for one, share, end in zip(rows, shares, ends, strict=True) if end and share]
        if not limited:
            return None
        each = [round(min(one[v] / share for one, share in limited)) for v in range(shards)]
        if sum(each) < FEW:
            order = sorted(range(len(parts)), key=lambda i: parts[i].name)
            ending = [rows[i] if ends[i] else None for i in order]
            each = [_rows_until(ending, [shares[i] for i in order], shard, shards) for shard in range(shards)]
    taken = [sum(one) for one in rows] if until == "all" else [share * sum(each) for share in shares]
    full = sum(some * every / max(1, sum(one)) for some, every, one in zip(taken, tokens, rows, strict=True))
    steps = max(1, count_steps(each, batch) if any(ends) else round(each[0] / batch))
    return Lasting(steps, min(1.0, full / (steps * batch * seq_len)), any(ends))


def _rows_until(ending: Sequence[Sequence[int] | None], shares: Sequence[float], shard: int, shards: int) -> int:
    """The rows of a virtual shard of a mix until the first source is through whose turn it is."""
    left = [inf if rows is None else rows[shard] for rows in ending]
    for row in count():
        part = pick_part(row * shards + shard, shares)
        left[part] -= 1
        if left[part] < 0:
            return row
    raise AssertionError


def tell_lasting(found: Mapping[int, Lasting | None], steps: int) -> tuple[str, list[tuple[str, str]]]:
    """How long data last, in words: for the line of the step, and lines of their own about what there is to do. Pure.

    Args:
        found: by virtual shards, those of the run first, and then others that it could have.
        steps: of the run.
    """
    (shards, lasting), *others = found.items()
    if lasting is None or not lasting.ends:
        return f"; {_about(lasting.steps)} an epoch" if lasting else "", []
    told = []
    if lasting.steps < steps:
        more = f"larger --mix.epochs have more; with --steps {lasting.steps} the learning rate falls until there"
        told.append(("data end", f"with about step {lasting.steps:,} of {steps:,}: {more}"))
    fuller = [(n, other.fill) for n, other in others if other and other.fill > max(lasting.fill * 1.5, 0.1)]
    if lasting.fill < LOW and fuller:
        best = max(fill for _, fill in fuller)
        n, fill = next((n, fill) for n, fill in fuller if fill > 0.8 * best)
        few = f"about {lasting.fill:.0%} until then, as there are few documents for {shards} virtual shards"
        told.append(("fill", f"{few}: about {fill:.0%} with --virtual-shards {n}"))
    return f"; {_about(lasting.steps)} until the data end", told


def _about(steps: int) -> str:
    return f"about {steps:,} step{'s' if steps > 1 else ''}"


def _deal(part: Part, pieces: Pieces, how: str, seq_len: int, shards: int) -> tuple[list[int], float]:
    """The rows that each virtual shard makes of a source, in all its epochs, and the tokens of all."""
    assert isinstance(part.source, Sized)
    documents = len(part.source) * (part.epochs or 1)
    made = cache(lambda size, start: count_rows(pieces, size, start, how, seq_len))
    sizes = [len(range(shard, documents, shards)) for shard in range(shards)]
    rows = [made(size, shard % len(pieces) if size < ENOUGH else 0) for shard, size in enumerate(sizes)]
    return rows, sum(map(sum, pieces)) / len(pieces) * documents


def count_rows(pieces: Pieces, documents: int, start: int, how: str, seq_len: int) -> int:
    """The rows of so many documents that are like these, from the `start`-th on. Pure.

    >>> [count_rows([[6], [5], [3, 1]], 4, 0, how, 8) for how in ("concat", "fit", "single")]
    [3, 3, 5]
    """
    if documents > ENOUGH:
        return round(count_rows(pieces, ENOUGH, start, how, seq_len) / ENOUGH * documents)
    lengths = [length for i in range(documents) for length in pieces[(start + i) % len(pieces)]]
    if how == "concat":
        return -(-sum(lengths) // seq_len)
    return len(fit_rows(lengths, seq_len)) if how == "fit" else len(lengths)


def count_steps(rows: Sequence[int], batch: int) -> int:
    """The steps of `batch` rows in which a virtual shard has one, where each has so many. Pure.

    >>> count_steps([3, 1, 1, 1], 2)
    4
    """
    whole = min(rows) * len(rows)
    rest = {(row * len(rows) + v) // batch for v, own in enumerate(rows) for row in range(min(rows), own)}
    return len({*range(whole // batch, -(-whole // batch))} | rest) + whole // batch
