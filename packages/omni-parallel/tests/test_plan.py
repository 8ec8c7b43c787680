"""Laws of the plan: it follows from facts and sizes alone."""

from dataclasses import dataclass, replace

import pytest

from omni_mesh import MeshSpec
from omni_parallel import RecomputeConfig, plan_parallel


@dataclass(frozen=True)
class Facts:
    blocks: tuple[str, ...] = tuple(f"layers.{i}" for i in range(5))
    num_heads: int = 6
    num_kv_heads: int = 2
    head: str = "lm_head"
    decoder: str = "model"
    rotaries: tuple[str, ...] = ()
    unsplittable: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    expert_shapes: tuple[tuple[int, ...], ...] = ()
    unspreadable: tuple[str, ...] = ()
    mlps: tuple[str, ...] = tuple(f"layers.{i}.mlp" for i in range(5))


@pytest.mark.parametrize(("every", "chosen"), [(0, ()), (1, (0, 1, 2, 3, 4)), (2, (0, 2, 4)), (3, (0, 3)), (9, (0,))])
def test_every_nth_block_is_recomputed(every: int, chosen: tuple[int, ...]) -> None:
    plan = plan_parallel(Facts(), MeshSpec(), recompute=RecomputeConfig(every))
    assert plan.recompute == tuple(f"layers.{i}" for i in chosen)
    assert plan.blocks == Facts().blocks


def test_parameters_are_freed_after_forward_only_where_they_are_sharded() -> None:
    assert plan_parallel(Facts(), MeshSpec(shard=2)).reshard_after_forward
    assert not plan_parallel(Facts(), MeshSpec(replicate=2)).reshard_after_forward
    assert not plan_parallel(Facts(), MeshSpec(shard=2), keep_gathered=True).reshard_after_forward


def test_all_that_does_not_divide_is_told_at_once() -> None:
    with pytest.raises(ValueError) as told:
        facts = Facts(unsplittable=("MambaMixer carries something along the row beside attention",))
        plan_parallel(facts, MeshSpec(sp=4, tp=3), recompute=RecomputeConfig(-1), sp_chunks=3)
    message = str(told.value)
    for part in (
        "sp_chunks=3: of 6 heads on sp=4 ranks none has more than 2 to cut",
        "sp=4 cannot cut a row: MambaMixer carries something along the row beside attention. Leave sp at 1",
        "num_kv_heads=2 does not divide by tp=3: choose tp among the divisors of 2",
        "recompute every=-1",
    ):
        assert part in message
    assert "num_heads=6 does not divide by tp=3" not in message


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="names no repeated blocks"):
        plan_parallel(Facts(blocks=()), MeshSpec())


@pytest.mark.parametrize(
    ("chunks", "sp", "told"), [(0, 2, "must be at least 1"), (-1, 1, "must be at least 1"), (2, 1, "sp=1 has none")]
)
def test_chunks_that_mean_nothing_are_refused(chunks: int, sp: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        plan_parallel(Facts(), MeshSpec(sp=sp), sp_chunks=chunks)


def test_any_number_of_heads_can_be_cut_by_sequence_ranks() -> None:
    plan = plan_parallel(Facts(rotaries=("model.rotary_emb",)), MeshSpec(sp=5))
    assert (plan.decoder, plan.rotaries, plan.sp_chunks) == ("model", ("model.rotary_emb",), 1)


EXPERTS = Facts(experts=("layers.1.experts", "layers.3.experts"), expert_shapes=((6, 8, 4), (6, 8)))


def test_experts_are_spread_only_over_expert_ranks() -> None:
    assert plan_parallel(EXPERTS, MeshSpec(shard=2)).experts == ()
    assert plan_parallel(EXPERTS, MeshSpec(shard=2, ep=2)).experts == EXPERTS.experts


def test_experts_that_their_ranks_cannot_share_evenly_are_refused() -> None:
    facts = replace(EXPERTS, expert_shapes=((6, 10, 4), (6, 9), (6, 5, 7)))
    with pytest.raises(ValueError) as problem:
        plan_parallel(facts, MeshSpec(shard=4, ep=2))
    assert "experts of shape [9] do not divide over the efsdp=2 ranks" in str(problem.value)
    assert "experts of shape [5, 7] do not divide" in str(problem.value)
    assert "[10, 4]" not in str(problem.value)
    assert plan_parallel(facts, MeshSpec(shard=2, ep=2)).experts == EXPERTS.experts


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (Facts(), "ep=2, but the model has no experts to spread: leave ep at 1"),
        (
            replace(EXPERTS, expert_shapes=((6, 8), (9, 8))),
            "ep=2 does not divide the 9 experts: choose ep among 1, 3, 9",
        ),
        (
            replace(EXPERTS, unspreadable=("LoopExperts does not call the interface",)),
            "ep=2 cannot spread experts: LoopExperts does not call the interface. Leave ep at 1, shard instead.",
        ),
    ],
)
def test_experts_that_cannot_be_spread_are_refused_by_name(facts: Facts, told: str) -> None:
    with pytest.raises(ValueError) as problem:
        plan_parallel(facts, MeshSpec(shard=2, ep=2))
    assert told in str(problem.value)


def test_feed_forwards_take_tiles_only_if_asked_to() -> None:
    assert (plan_parallel(Facts(), MeshSpec()).tiled, plan_parallel(Facts(), MeshSpec()).tile) == ((), 0)
    plan = plan_parallel(Facts(), MeshSpec(), tile=64, recompute=RecomputeConfig(1, keep="attention"))
    assert (plan.tiled, plan.tile) == (Facts().mlps, 64)


def test_tiles_that_mean_nothing_are_refused_all_at_once() -> None:
    with pytest.raises(ValueError) as told:
        plan_parallel(Facts(mlps=()), MeshSpec(), tile=-1, recompute=RecomputeConfig(1, keep="matmuls"))
    for part in (
        "tile=-1: use 0 for no tiles",
        "tile=-1, but no module in the blocks is known to be a feed-forward that treats each token alone",
        "recompute keep=matmuls would keep what tiles of -1 tokens are there to forget",
    ):
        assert part in str(told.value)
