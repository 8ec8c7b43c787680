"""Laws of how gradients are summed: as narrow as they are made, and in the digits of the sum."""

import pytest
import torch
from ranks import Run
from summing import are_near, sum_between_hosts, sum_both_ways, travelling_dtypes

from omni_mesh import MeshConfig

GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs 2 GPUs")
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)


def check(found: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    for name, (made, shared) in found.items():
        assert torch.equal(made, shared), (name, (made - shared).abs().max())


@DTYPES
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_sum_over_ranks_has_all_digits_of_what_they_made(run: Run, ranks: int, dtype: torch.dtype) -> None:
    for found in run(sum_both_ways, ranks, MeshConfig(shard=ranks), dtype, 2):
        check(found)


@pytest.mark.gpu
@GPUS
@DTYPES
def test_copies_between_gpus_give_the_same_sum(run: Run, dtype: torch.dtype) -> None:
    for found in run(sum_both_ways, 2, MeshConfig(shard=2), dtype, 2, True):
        check(found)


@DTYPES
def test_between_hosts_the_sum_is_the_same(run: Run, dtype: torch.dtype) -> None:
    for found in run(sum_between_hosts, 2, dtype):
        check(found)


def test_one_host_is_known_by_its_name(run: Run) -> None:
    assert run(are_near, 3, ["a", "a", "b"]) == [[False, True]] * 3
    assert run(are_near, 2, ["a", "a"]) == [[True, True]] * 2


@DTYPES
def test_gradients_travel_as_narrow_as_they_are_computed_with(run: Run, dtype: torch.dtype) -> None:
    assert run(travelling_dtypes, 2, dtype) == [{dtype}] * 2
