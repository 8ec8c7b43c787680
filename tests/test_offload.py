"""Laws of activations in host memory where parameters are shared: what is gathered stays, and numbers do."""

import pytest
import torch
from linking import WIDTH, put_away_under_sharding
from ranks import Run


@pytest.mark.parametrize("every", [0, 4])
@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_gathered_stays_and_gradients_are_bit_equal(run: Run, ranks: int, every: int) -> None:
    for grads, sizes in run(put_away_under_sharding, ranks, every):
        assert len(grads) == 8
        assert all(torch.equal(plain, again) for plain, again in grads)
        assert sizes == {(5, WIDTH)}
