"""How long a training step takes, and what bounds it, from what blocks do and what a GPU can.

    products    operations over the speed of large products, and their bytes over the bandwidth of memory
    attention   operations over the speed of attention, which is lower for short documents
    memory      bytes of everything else over the bandwidth: norms, gates, copies, the optimizer
    link, net   collectives that nothing runs beside, within nodes and between them
    copies      between GPU and host, that nothing runs beside
    host        what it takes to launch all kernels, beyond all that

Collectives of sharding run under the blocks beside them; those of sequence and expert ranks are waited for.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from footprint import HALF, WIDE, How, Sizes
from gpus import Cluster, Gpu
from traffic import Collective, seconds_of, sends_of, traffic_of_block, traffic_of_unit
from work import Attention, Load, Rehearsal

from omni_mesh import MeshSpec
from omni_models import ModelFacts

PARTS: Final = ("products", "attention", "memory", "link", "net", "copies", "host")
LAUNCH_S: Final = 4e-6
"""What a kernel takes of the GPU, however small."""
BESIDE: Final = 0.6
"""How much of a collective that runs beside a block is time lost all the same: it takes processors and bandwidth."""
HOST_S: Final = 25e-6
"""What the host needs for a kernel, with what torch does around it."""
BLOCK_HOST_S: Final = 2e-3
"""What it needs for a block beside, forward and backward, with its sharding."""
STEP_HOST_S: Final = 6e-3
"""What it needs for all else of a step."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a step, by what takes them."""

    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        """Of a step."""
        return sum(self.parts.values())

    @property
    def bound(self) -> str:
        """What takes most."""
        return max(self.parts, key=lambda part: self.parts[part])


def predict_pace(
    facts: ModelFacts, sizes: Sizes, seen: Rehearsal, how: How, cluster: Cluster, *, reach: float | None = None
) -> Pace:
    """The seconds of a step. Pure.

    Args:
        facts: of the model.
        sizes: of its units.
        seen: of its blocks, with `how.tokens`.
        how: it is trained.
        cluster: on which.
        reach: tokens of the document that a token is in, on average; None for whole rows.
    """
    step = _Step(how.spec, cluster, Counter())
    gpu, passes = cluster.gpu, how.passes
    row = reach if reach is not None else how.tokens * how.spec.sp
    blocks: dict[int, tuple[int, int]] = {}
    for i, block in enumerate(seen.blocks):
        first, count = blocks.get(id(block), (i, 0))
        blocks[id(block)] = (first, count + 1)
    for i, count in blocks.values():
        times, block = passes * count, seen.blocks[i]
        traffic = traffic_of_block(sizes, i, how, cluster.node)
        forward = step.compute(block.forward, gpu, row, times)
        backward = step.compute(block.backward, gpu, row, times)
        # What sharding copies into and out of what it gathers and sums; it is beside products, but takes bandwidth.
        unit = sum(one.bytes for one in traffic.gather)
        step.move(2 * unit * (2 if how.frees else 1), gpu, times)
        step.move(sum(one.bytes for one in traffic.sum if one.op != "all_reduce") * 2, gpu, times)
        again = traffic.gather if how.frees else ()
        step.overlap(traffic.gather, forward, times)
        step.overlap((*again, *traffic.sum), backward, times)
        if i in how.away:
            step.add("copies", times * max(0.0, block.forward.kept / (gpu.host_link * 1e9) - min(forward, backward)))
    _add_loss(step, facts, sizes, how, gpu)
    for unit in (sizes.rest, sizes.head):
        # Nothing is before the embedding, forward, nor after it, backward.
        traffic = traffic_of_unit(unit, "fsdp", how, one_host=how.one_host)
        step.overlap(traffic.gather + traffic.sum, 0.0 if unit is sizes.rest else _loss_s(facts, how, gpu), passes)
    _add_update(step, sizes, how, gpu)
    device = sum(step.parts.values())
    kernels = sum(block.forward.kernels + block.backward.kernels for block in seen.blocks)
    host = STEP_HOST_S + passes * (HOST_S * kernels + BLOCK_HOST_S * len(seen.blocks))
    step.add("host", max(0.0, host - device))
    return Pace({part: step.parts[part] for part in PARTS})


@dataclass(frozen=True, slots=True)
class _Step:
    spec: MeshSpec
    cluster: Cluster
    parts: Counter[str]

    def add(self, part: str, seconds: float) -> None:
        self.parts[part] += seconds  # pyright: ignore[reportArgumentType]

    def move(self, nbytes: float, gpu: Gpu, times: float) -> None:
        """Read and write so many bytes."""
        self.add("memory", times * nbytes / (gpu.bandwidth * 1e9))

    def compute(self, load: Load, gpu: Gpu, row: float, times: int) -> float:
        """Seconds of what a block does alone; they are added `times`."""
        narrow = load.flops8 / ((gpu.narrow or gpu.products) * 1e12)
        seconds = {
            "products": load.flops / (gpu.products * 1e12) + narrow,
            "attention": sum(seconds_of_attention(one, gpu, row) for one in load.attention),
            "memory": load.moved / (gpu.bandwidth * 1e9) + LAUNCH_S * load.kernels,
        }
        for part, each in seconds.items():
            self.add(part, times * each)
        self.expose(sends_of(load), times)
        return sum(seconds.values())

    def expose(self, collectives: Sequence[Collective], times: float) -> None:
        """Wait for them."""
        for one in collectives:
            seconds, far = seconds_of(one, self.spec, self.cluster)
            self.add("net" if far else "link", times * seconds)

    def overlap(self, collectives: Sequence[Collective], under: float, times: float) -> None:
        """Wait for what of them takes longer than what runs beside, which they make slower."""
        each = [seconds_of(one, self.spec, self.cluster) for one in collectives]
        whole = sum(seconds for seconds, _ in each)
        lost = max(BESIDE * whole, whole - under)
        for seconds, far in each:
            self.add("net" if far else "link", times * lost * seconds / whole if whole else 0.0)


def seconds_of_attention(one: Attention, gpu: Gpu, row: float) -> float:
    """Of a call, whose documents are of `row` tokens. Pure."""
    seen = row / 2 if one.causal else row
    if one.window is not None and one.window < row:
        seen = one.window - one.window**2 / (2 * row) if one.causal else min(row, 2 * one.window)
    speed = gpu.attention[1 if one.backward else 0] * 1e12 * row / (row + gpu.half_row)
    return one.flops * one.tokens * seen / speed


def _loss_s(facts: ModelFacts, how: How, gpu: Gpu) -> float:
    """Seconds of the head and the loss: three products, and the logits read and written."""
    T, V, H = how.tokens, facts.vocab_size, facts.hidden_size
    moved = (6 if how.chunked else 24) * HALF * T * V + 3 * WIDE * V * H
    return 6 * T * V * H / (gpu.products * 1e12) + moved / (gpu.bandwidth * 1e9)


def _add_loss(step: _Step, facts: ModelFacts, sizes: Sizes, how: How, gpu: Gpu) -> None:
    flops = 6 * how.tokens * facts.vocab_size * facts.hidden_size
    products = flops / (gpu.products * 1e12)
    step.add("products", how.passes * products)
    step.add("memory", how.passes * (_loss_s(facts, how, gpu) - products))


def _add_update(step: _Step, sizes: Sizes, how: How, gpu: Gpu) -> None:
    """The norm of gradients, and the update: a read of all, and a write of all but gradients. Casts for each pass."""
    own = sizes.total / how.spec.fsdp
    # Experts that are whole here have narrow gradients, and casts that are made by the update.
    alone = sum(unit.experts for unit in sizes.blocks) // how.spec.ep if how.alone else 0
    step.move(own * (4 * WIDE + 4 * how.moment_bytes) - alone * (2 * HALF - HALF), gpu, 1)
    step.move((own - alone) * (WIDE + HALF) * (2 if how.frees else 1), gpu, how.passes)
    if how.moments_away:
        step.add("copies", own * 2 * how.moment_bytes / (gpu.host_link * 1e9))
