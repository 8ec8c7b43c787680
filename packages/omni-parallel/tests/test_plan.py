"""Laws of the plan: it follows from facts and sizes alone."""

from dataclasses import dataclass

import pytest

from omni_mesh import MeshSpec
from omni_parallel import RecomputeConfig, plan_parallel


@dataclass(frozen=True)
class Facts:
    blocks: tuple[str, ...] = tuple(f"layers.{i}" for i in range(5))
    num_heads: int = 6
    num_kv_heads: int = 2


@pytest.mark.parametrize(("every", "chosen"), [(0, ()), (1, (0, 1, 2, 3, 4)), (2, (0, 2, 4)), (3, (0, 3)), (9, (0,))])
def test_every_nth_block_is_recomputed(every: int, chosen: tuple[int, ...]) -> None:
    plan = plan_parallel(Facts(), MeshSpec(), recompute=RecomputeConfig(every))
    assert plan.recompute == tuple(f"layers.{i}" for i in chosen)
    assert plan.blocks == Facts().blocks


def test_parameters_are_freed_after_forward_only_where_they_are_sharded() -> None:
    assert plan_parallel(Facts(), MeshSpec(shard=2)).reshard_after_forward
    assert not plan_parallel(Facts(), MeshSpec(replicate=2)).reshard_after_forward


def test_all_that_does_not_divide_is_told_at_once() -> None:
    with pytest.raises(ValueError) as told:
        plan_parallel(Facts(), MeshSpec(sp=4, tp=3), recompute=RecomputeConfig(-1))
    message = str(told.value)
    for part in (
        "num_heads=6 does not divide by sp=4",
        "num_kv_heads=2 does not divide by sp=4",
        "num_kv_heads=2 does not divide by tp=3: choose tp among the divisors of 2",
        "recompute every=-1",
    ):
        assert part in message
    assert "num_heads=6 does not divide by tp=3" not in message


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="names no repeated blocks"):
        plan_parallel(Facts(blocks=()), MeshSpec())
