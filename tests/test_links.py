"""Laws of how gradients are summed: as narrow as they are made, and in the digits of the sum."""

import pytest
import torch
from linking import found_links, sum_between_hosts, sum_both_ways, travelling_dtypes
from ranks import Run

from omni_mesh import MeshConfig

GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs 2 GPUs")
WAYS = ["collectives", "left open", pytest.param("copies", marks=[pytest.mark.gpu, GPUS])]


@pytest.mark.parametrize("links", WAYS)
@pytest.mark.parametrize("config", [MeshConfig(), MeshConfig(shard=2), MeshConfig(shard=3)], ids=lambda c: f"{c.shard}")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_sum_over_ranks_has_all_digits_of_what_they_made(
    run: Run, links: str, config: MeshConfig, dtype: torch.dtype
) -> None:
    ranks = 1 if config == MeshConfig() else config.shard
    for found in run(sum_both_ways, ranks, config, dtype, links, 2):
        for name, (made, shared) in found.items():
            assert torch.equal(made, shared), (name, (made - shared).abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_between_hosts_the_sum_is_the_same(run: Run, dtype: torch.dtype) -> None:
    for found in run(sum_between_hosts, 2, dtype):
        assert all(torch.equal(made, shared) for made, shared in found.values())


def test_collectives_that_meet_everyone_are_for_one_host(run: Run) -> None:
    assert run(found_links, 3, ["a", "a", "b"]) == [[False, True]] * 3
    assert run(found_links, 2, ["a", "a"]) == [[True, True]] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_all_travels_as_narrow_as_it_is_computed_with(run: Run, dtype: torch.dtype) -> None:
    assert run(travelling_dtypes, 2, dtype) == [({dtype}, {dtype})] * 2
