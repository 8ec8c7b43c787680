"""Laws of activations in host memory where parameters are shared: what is gathered stays, and numbers do."""

from math import prod

import pytest
import torch
from ranks import Run
from summing import WIDTH, put_away_of_experts, put_away_under_sharding

from omni_mesh import MeshConfig


@pytest.mark.parametrize("every", [0, 4])
@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_gathered_stays_and_gradients_are_bit_equal(run: Run, ranks: int, every: int) -> None:
    for grads, sizes in run(put_away_under_sharding, ranks, every):
        assert len(grads) == 8
        assert all(torch.equal(plain, again) for plain, again in grads)
        assert sizes == {(5, WIDTH)}


@pytest.mark.parametrize("config", [MeshConfig(shard=2, ep=2), MeshConfig(shard=4, ep=2)], ids=lambda c: f"{c.shard}")
def test_weights_of_spread_experts_stay(run: Run, config: MeshConfig) -> None:
    for grads, weights, away in run(put_away_of_experts, config.shard, config):
        assert len(grads) > 10 and len(away) > 10
        assert all(torch.equal(plain, again) for plain, again in grads)
        assert not [size for size in away if len(size) == 3 and prod(size) in weights]
