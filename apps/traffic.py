"""The collectives of one training step: which ranks, how many bytes, how often, and how long they take alone.

Bytes are those of the larger side of a collective: the whole of what is gathered, or summed, or exchanged.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from footprint import HALF, WIDE, How, Sizes
from gpus import Cluster
from step import HEARD
from work import Load, Rehearsal

from omni_mesh import MeshSpec
from omni_models import ModelFacts
from omni_parallel import has_shared_experts


class Group(NamedTuple):
    """Ranks that talk: how many, on how many of each node."""

    ranks: int
    per_node: int

    @property
    def nodes(self) -> int:
        """Over which they are spread."""
        return -(-self.ranks // self.per_node)


class Collective(NamedTuple):
    """What is sent when."""

    op: str
    axis: str
    bytes: int


@dataclass(frozen=True, slots=True)
class UnitTraffic:
    """What sharding sends for a unit, in one pass."""

    gather: tuple[Collective, ...]
    sum: tuple[Collective, ...]


def group_of(spec: MeshSpec, axis: str, node: int) -> Group:
    """The ranks along `axis`, on nodes of so many GPUs, filled in the order of ranks. Pure."""
    size, stride = _axes(spec)[axis]
    return Group(size, max(1, min(size, node // stride)))


def ranks_of(spec: MeshSpec, axis: str) -> tuple[int, ...]:
    """The ranks along `axis`, of rank 0. Pure.

    >>> ranks_of(MeshSpec(replicate=2, shard=2), "replicate")
    (0, 2)
    """
    size, stride = _axes(spec)[axis]
    return tuple(range(0, size * stride, stride))


def _axes(spec: MeshSpec) -> dict[str, tuple[int, int]]:
    """Sizes, and how far apart in rank neighbours are."""
    return {
        "world": (spec.world, 1),
        "replicate": (spec.replicate, spec.fsdp),
        "fsdp": (spec.fsdp, 1),
        "sp": (spec.sp, 1),
        "efsdp": (spec.efsdp, spec.ep),
        "ep": (spec.ep, 1),
    }


def traffic_of_unit(params: int, axis: str, how: How, *, one_host: bool) -> UnitTraffic:
    """What a unit of so many parameters sends, whose ranks are those of `axis`. Pure."""
    ranks = _axes(how.spec)[axis][0]
    gather, sums = [], []
    if params and ranks > 1:
        gather.append(Collective("all_gather", axis, HALF * params))
        narrow = Collective("all_to_all", axis, HALF * params)
        sums.append(narrow if one_host else Collective("reduce_scatter", axis, WIDE * params))
    if params and how.spec.replicate > 1:
        sums.append(Collective("all_reduce", "replicate", WIDE * params // ranks))
    return UnitTraffic(tuple(gather), tuple(sums))


def traffic_of_block(sizes: Sizes, i: int, how: How, node: int) -> UnitTraffic:
    """What the units of block `i` send, the experts in it apart if they are. Pure."""
    unit, spec = sizes.blocks[i], how.spec
    if spec.ep == 1:
        return traffic_of_unit(sum(unit), "fsdp", how, one_host=how.one_host)
    own = traffic_of_unit(unit.dense, "fsdp", how, one_host=how.one_host)
    if not has_shared_experts(spec):
        return own
    one_host = group_of(spec, "efsdp", node).nodes == 1
    experts = traffic_of_unit(unit.experts // spec.ep, "efsdp", how, one_host=one_host)
    return UnitTraffic(own.gather + experts.gather, experts.sum + own.sum)


def list_traffic(facts: ModelFacts, sizes: Sizes, seen: Rehearsal, how: How, node: int) -> Counter[Collective]:
    """Every collective of a step, and how often. Pure."""
    found: Counter[Collective] = Counter()
    for one in _of_a_pass(facts, sizes, seen, how, node):
        found[one] += how.passes
    found.update(_of_a_step(facts, how))
    return found


def _of_a_pass(facts: ModelFacts, sizes: Sizes, seen: Rehearsal, how: How, node: int) -> Iterator[Collective]:
    for unit in (sizes.rest, sizes.head):
        traffic = traffic_of_unit(unit, "fsdp", how, one_host=how.one_host)
        yield from traffic.gather + traffic.sum
    for i, block in enumerate(seen.blocks):
        traffic = traffic_of_block(sizes, i, how, node)
        yield from traffic.gather * (2 if how.frees else 1) + traffic.sum
        for load in (block.forward, block.backward):
            yield from sends_of(load)


def _of_a_step(facts: ModelFacts, how: How) -> Iterator[Collective]:
    """Numbers that all ranks agree on: targets, loss, signals and counts, loads of experts, the norm of gradients."""
    yield Collective("all_reduce", "world", 8)
    yield Collective("all_reduce", "world", 4)
    yield Collective("all_reduce", "world", 8 * len(HEARD))
    if facts.experts:
        yield Collective("all_reduce", "world", 8 * facts.num_experts * len(facts.experts))
    yield Collective("all_reduce", "fsdp", 4)
    if how.spec.ep > 1:
        yield from (Collective("all_reduce", axis, 4) for axis in ("efsdp", "ep"))


def sends_of(load: Load) -> tuple[Collective, ...]:
    """What a block sends beside what sharding does. Pure."""
    return tuple(Collective(*sent) for sent in load.sent)


def seconds_of(one: Collective, spec: MeshSpec, cluster: Cluster) -> tuple[float, bool]:
    """Of a collective alone, and whether the network between nodes is what takes most of it. Pure.

    Within a node every rank sends at the speed of its link; between nodes the ranks of a group on one node share their
    ways out. However little it carries, a collective goes from rank to rank.
    """
    group = group_of(spec, one.axis, cluster.node)
    p, g, m = group.ranks, group.per_node, group.nodes
    if p == 1:
        return 0.0, False
    if one.op == "all_to_all":
        link = one.bytes * (g - 1) / p / (cluster.gpu.link * 1e9)
        net = one.bytes * (p - g) / p / cluster.net
    else:
        rounds = 2 if one.op == "all_reduce" else 1
        link = rounds * one.bytes * (p - 1) / p / (cluster.gpu.link * 1e9)
        net = rounds * one.bytes * (m - 1) / m / (g * cluster.net)
    hops = cluster.link_hop * (g - 1), cluster.net_hop * (m - 1)
    return max(link, net) + sum(hops), net > link
