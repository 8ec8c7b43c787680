"""The memory of a rank through one training step, from sizes of units of sharding and what a rehearsal has seen.

A step holds different things at different moments: at the end of the first forward pass no gradient is there, at the
end of the backward pass no activation. The peak is the fullest moment, not the sum of everything. Bytes throughout.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, NamedTuple

from torch import nn
from work import Rehearsal

from omni_mesh import MeshSpec
from omni_models import ModelFacts
from omni_models.loss import chunk_tokens
from omni_parallel import has_shared_experts

HALF: Final = 2
"""Bytes of a number in the dtype of compute."""
WIDE: Final = 4
"""Bytes of a master parameter and its gradient."""
FERRY: Final = 3 * 2 * (1 << 23)
"""Numbers of moments that are on the GPU while parameters are updated, if they are held in memory of the host."""


class Unit(NamedTuple):
    """Parameters of a block: those that are gathered with it, and those of experts."""

    dense: int
    experts: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Parameters by unit of sharding."""

    blocks: tuple[Unit, ...]
    head: int
    rest: int
    """Embedding, norms, and what else is in no block."""
    embedding: int
    total: int


@dataclass(frozen=True, slots=True)
class How:
    """What decides how much memory a step takes, beside the model."""

    spec: MeshSpec
    tokens: int
    """Of a rank in one pass."""
    passes: int = 1
    """Microbatches of a step on a rank."""
    recompute: bool = False
    keep_gathered: bool = False
    away: frozenset[int] = frozenset()
    """Blocks, by number, that hold in memory of the host what they keep."""
    moment_bytes: int = 4
    moments_away: bool = False
    chunked: bool = True
    """Whether logits are never held all at once."""
    one_host: bool = True
    """Whether the ranks that share parameters are of one node."""

    @property
    def frees(self) -> bool:
        """Whether gathered parameters of blocks are freed after the forward pass."""
        return self.spec.fsdp > 1 and not self.keep_gathered

    @property
    def alone(self) -> bool:
        """Whether experts are whole on one rank."""
        return self.spec.ep > 1 and not has_shared_experts(self.spec)


@dataclass(frozen=True, slots=True)
class Moment:
    """What a rank holds at one moment of a step."""

    when: str
    weights: int
    """Masters, and casts that are kept of them."""
    moments: int
    gathered: int
    gradients: int
    """Of this rank, and those on their way to others."""
    activations: int
    """Kept for the backward pass."""
    temporary: int
    """What the block, or the loss, that runs needs beside."""

    @property
    def total(self) -> int:
        """Bytes."""
        parts = (self.weights, self.moments, self.gathered, self.gradients)
        return sum(parts) + self.activations + self.temporary


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory of a step."""

    peak: Moment
    moments: tuple[Moment, ...]
    """The fullest of each kind, in the order of the step."""
    host: int
    """Bytes of pinned memory of the host, of this rank."""


def measure_units(model: nn.Module, facts: ModelFacts) -> Sizes:
    """The parameters of `model` by unit of sharding."""
    banks = {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in facts.experts}
    blocks = []
    for name in facts.blocks:
        whole = sum(p.numel() for p in model.get_submodule(name).parameters())
        experts = sum(size for bank, size in banks.items() if bank.startswith(f"{name}."))
        blocks.append(Unit(whole - experts, experts))
    head = sum(p.numel() for p in model.get_submodule(facts.head).parameters()) if facts.head else 0
    rest = facts.num_params - head - sum(sum(unit) for unit in blocks)
    return Sizes(tuple(blocks), head, rest, facts.vocab_size * facts.hidden_size, facts.num_params)


def trace_memory(facts: ModelFacts, sizes: Sizes, seen: Rehearsal, how: How) -> Footprint:
    """What a rank holds through a step. Pure.

    Args:
        facts: of the model.
        sizes: of its units.
        seen: of its blocks, with `how.tokens`, in the order of `sizes.blocks`.
        how: it is trained.
    """
    step = _Step(facts, sizes, seen, how)
    moments = tuple(step.moments())
    host = sum(step.kept[i] for i in how.away)
    host += 2 * how.moment_bytes * sizes.total // how.spec.fsdp if how.moments_away else 0
    return Footprint(max(moments, key=lambda moment: moment.total), moments, host)


class _Step:
    """The sums that moments are made of."""

    def __init__(self, facts: ModelFacts, sizes: Sizes, seen: Rehearsal, how: How) -> None:
        spec = how.spec
        self.facts, self.sizes, self.seen, self.how = facts, sizes, seen, how
        self.hidden = HALF * how.tokens * facts.hidden_size
        self.kept = [block.forward.kept for block in seen.blocks]
        self.before = [0, *accumulate(self.kept)]
        spread = [unit.experts // spec.ep for unit in sizes.blocks]
        self.units = [u.dense + (0 if how.alone else e) for u, e in zip(sizes.blocks, spread, strict=True)]
        self.lonely = [e if how.alone else 0 for e in spread]
        self.gathered_before = [0, *accumulate(HALF * n for n in self.units)]
        # Experts that are whole on a rank have narrow gradients, until a second pass adds to them.
        narrow = HALF if how.passes == 1 else WIDE
        efsdp = max(1, spec.fsdp // spec.ep)
        each = [
            WIDE * u.dense // spec.fsdp + (narrow * e if how.alone else WIDE * e // efsdp)
            for u, e in zip(sizes.blocks, spread, strict=True)
        ]
        self.grads_before = [0, *accumulate(each)]
        self.head_grad, self.rest_grad = (WIDE * n // spec.fsdp for n in (sizes.head, sizes.rest))
        casts = HALF * sum(self.lonely) if not how.recompute else 0
        self.weights = WIDE * sizes.total // spec.fsdp + casts
        away = how.moments_away
        self.state = 0 if away else 2 * how.moment_bytes * sizes.total // spec.fsdp
        self.sent = HALF if how.one_host else WIDE
        """Bytes of a number of a gradient that is on its way to others."""
        self.around = HALF * (sizes.rest + sizes.head)

    def moments(self) -> Iterator[Moment]:
        """The fullest of each kind."""
        how, last = self.how, len(self.kept) - 1
        # What is there grows or shrinks evenly among blocks that are alike: the first and the last of each are enough.
        kinds: dict[int, list[int]] = {}
        for i, block in enumerate(self.seen.blocks):
            kinds.setdefault(id(block), []).append(i)
        some = sorted({i for own in kinds.values() for i in (own[0], own[-1])} | {max(0, last - 1), last})
        yield max((self._forward(i) for i in some), key=lambda moment: moment.total)
        yield self._loss()
        yield self._reduce("gradients of the head leave", len(self.kept), self.sizes.head)
        yield max((self._backward(i) for i in some), key=lambda moment: moment.total)
        yield max(
            (self._reduce(f"gradients of block {i + 1} leave", i, self.units[i]) for i in some if i),
            key=lambda moment: moment.total,
            default=self._loss(),
        )
        yield self._reduce("gradients of the embedding leave", 0, self.sizes.rest)
        ferry = FERRY * how.moment_bytes if how.moments_away else 0
        grads = self._grads(0) + self.head_grad + self.rest_grad if how.passes == 1 else self._grads(0)
        yield Moment("update of parameters", self.weights, self.state, 0, grads, 0, ferry)

    def _grads(self, first: int) -> int:
        """Bytes of gradients of this rank once the backward pass has been through block `first`."""
        if self.how.passes > 1:
            return self.grads_before[-1] + self.head_grad + self.rest_grad
        return self.grads_before[-1] - self.grads_before[first]

    def _acts(self, i: int) -> int:
        """Bytes that the blocks before block `i` keep on the GPU, with what the first is given."""
        near = 1 if i < len(self.kept) - 1 else 2
        return self.hidden + self.before[i] - sum(self.kept[j] for j in self.how.away if j < i - near)

    def _forward(self, i: int) -> Moment:
        ahead = self.units[i + 1] if i + 1 < len(self.units) else self.sizes.head
        # What the unit came in is held until the next is used.
        there = HALF * (self.sizes.rest + self.units[i] + ahead)
        there += HALF * self.units[i] if self.how.frees else self.gathered_before[i + 1]
        grads = self._grads(0) if self.how.passes > 1 else 0
        extra = self.seen.blocks[i].forward.extra + self._casts(i)
        when = f"forward pass of block {i + 1}"
        return Moment(when, self.weights, self.state, there, grads, self._acts(i), extra)

    def _casts(self, i: int) -> int:
        """Bytes of casts of experts that are whole on this rank, made anew in each pass."""
        return HALF * self.lonely[i] if self.how.recompute else 0

    def _loss(self) -> Moment:
        how, V, H = self.how, self.facts.vocab_size, self.facts.hidden_size
        # What the last unit came in is held until another comes.
        there = self.around + HALF * (self.sizes.head or self.units[-1])
        there += 0 if how.frees else self.gathered_before[-1]
        grads = self._grads(0) if how.passes > 1 else 0
        if how.chunked:
            chunk = chunk_tokens(how.tokens, V, itemsize=HALF)
            another = chunk * (V + H) if chunk < how.tokens else 0
            # A chunk is there until the next is made. The gradient of the head is summed in fp32, and narrowed last.
            temporary = 2 * self.hidden + WIDE * V * H + HALF * (chunk * V + max(another, V * H))
        else:
            temporary = self.hidden + (HALF + 2 * WIDE) * how.tokens * V
        return Moment("loss", self.weights, self.state, there, grads, self._acts(len(self.kept)), temporary)

    def _tied(self) -> int:
        """Bytes of the gradient of a head that is the embedding too, which waits for the other."""
        return 0 if self.sizes.head else HALF * self.sizes.embedding

    def _reduce(self, when: str, i: int, unit: int) -> Moment:
        """Gradients of a unit leave, with blocks before `i` still to go backward."""
        how = self.how
        there = HALF * self.sizes.rest + (0 if i == 0 else HALF * self.sizes.head)
        there += HALF * self.units[i - 1] if how.frees and i else self.gathered_before[i]
        narrow = HALF if how.one_host and how.spec.fsdp > 1 else 0
        arrived = narrow * unit + WIDE * unit // how.spec.fsdp
        leaving = self.sent * unit + max(HALF * unit, arrived)
        grads = self._grads(min(i + 1, len(self.units)) if i else 0) + leaving
        grads += self.head_grad if i < len(self.units) and how.passes == 1 else 0
        # The gradient of an embedding is as large as it is, beside that of a head that it is, too.
        grads += self._tied() if i or not self._tied() else HALF * self.sizes.embedding
        return Moment(when, self.weights, self.state, there, grads, self._acts(i), self.hidden)

    def _backward(self, i: int) -> Moment:
        how = self.how
        if how.frees:
            there = HALF * (self.sizes.rest + self.units[i] + (self.units[i - 1] if i else 0))
        else:
            there = HALF * self.sizes.rest + self.gathered_before[i + 1]
        behind = self.units[i + 1] if i + 1 < len(self.units) else self.sizes.head
        grads = self._grads(i + 1) + self._tied() + self.sent * behind
        grads += self.head_grad if how.passes == 1 else 0
        extra = self.seen.blocks[i].backward.extra + self._casts(i) + self.hidden
        acts = self._acts(i) + self.kept[i]
        return Moment(f"backward pass of block {i + 1}", self.weights, self.state, there, grads, acts, extra)
