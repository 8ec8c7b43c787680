"""What the blocks of a model do in one pass, as values: memory, work and messages. Pure."""

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple


class Attention(NamedTuple):
    """A call of attention."""

    flops: int
    """For each pair of a query and a key that it sees, of all heads."""
    tokens: int
    window: int | None
    causal: bool
    backward: bool


class Send(NamedTuple):
    """A collective of the ranks of an axis, and the bytes of the larger side."""

    op: str
    axis: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Load:
    """What a block does in one direction, its recomputation included."""

    extra: int
    """Bytes above those that are there when it begins, at its highest."""
    kept: int
    """Bytes that it leaves behind."""
    flops: int
    """Of matrix products in 16 bits."""
    flops8: int
    """Of those in 8."""
    moved: int
    """Bytes that are read and written, of products too; not of attention."""
    kernels: int
    quantized: int
    """Numbers in 8 bits that products have read."""
    attention: tuple[Attention, ...]
    sent: tuple[Send, ...]
    """In order."""


@dataclass(frozen=True, slots=True)
class Block:
    """What one block does."""

    forward: Load
    backward: Load


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What the blocks of a model do, in order; those that are alike are the same object."""

    tokens: int
    blocks: tuple[Block, ...]


def quantize(narrow: Block, plain: Block) -> Block:
    """What a block does with products in 8 bits, with what its kernels read and write to quantize: four bytes a number,
    for its scale and for itself, with what they write."""

    def load(own: Load, wide: Load) -> Load:
        return replace(own, moved=wide.moved + 4 * own.quantized, kernels=wide.kernels + own.kernels // 8)

    return Block(load(narrow.forward, plain.forward), load(narrow.backward, plain.backward))


def between(few: Rehearsal, many: Rehearsal, tokens: int) -> Rehearsal:
    """What the blocks do with so many `tokens`, on the line through what they do with fewer and with more. Pure."""
    share = (tokens - few.tokens) / (many.tokens - few.tokens)

    def mix(a: Any, b: Any) -> Any:
        if isinstance(a, bool) or not isinstance(a, int | tuple):
            return a
        if isinstance(a, int):
            return round(a + share * (b - a))
        parts = [mix(x, y) for x, y in zip(a, b, strict=True)]
        return type(a)(*parts) if hasattr(a, "_fields") else tuple(parts)

    def load(a: Load, b: Load) -> Load:
        return Load(*(mix(getattr(a, each.name), getattr(b, each.name)) for each in fields(Load)))

    pairs = {id(a): (a, b) for a, b in zip(few.blocks, many.blocks, strict=True)}
    mixed = {key: Block(load(a.forward, b.forward), load(a.backward, b.backward)) for key, (a, b) in pairs.items()}
    return Rehearsal(tokens, tuple(mixed[id(block)] for block in few.blocks))
