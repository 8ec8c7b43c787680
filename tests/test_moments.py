"""Laws of moments that are narrow, or away in memory of the host, where ranks share parameters."""

from pathlib import Path

import pytest
import torch
from moments import train_all_ways, train_experts_all_ways
from ranks import Run
from torch import Tensor

from omni_mesh import MeshConfig

DTYPES = pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
MESHES = pytest.mark.parametrize(
    "config", [MeshConfig(shard=2), MeshConfig(replicate=2)], ids=lambda c: f"{c.replicate}x{c.shard}"
)
Found = list[dict[str, Tensor]]
"""What one rank has of several states."""
GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs 2 GPUs")


def check(found: Found, dtype: torch.dtype | None) -> None:
    first, *others = found
    assert {x.dtype for name, x in first.items() if name.startswith("exp_avg")} == {dtype or torch.float32}
    for other in others:
        assert first.keys() == other.keys()
        for name, x in first.items():
            assert torch.equal(x, other[name]), name


def check_ranks(results: list[tuple[Found, int]], config: MeshConfig, dtype: torch.dtype | None) -> None:
    for found, _ in results:
        check(found, dtype)
    assert [part for _, part in results] == ([0, 0] if config.replicate == 2 else [0, 1])
    if config.replicate == 2:
        check([found[0] for found, _ in results], dtype)


@MESHES
@DTYPES
def test_wherever_moments_are_numbers_are_the_same_and_a_stopped_run_goes_on_to_the_bit(
    run: Run, tmp_path: Path, config: MeshConfig, dtype: torch.dtype | None
) -> None:
    """Copies of a parameter stay copies, though its moments are rounded by dice."""
    check_ranks(run(train_all_ways, 2, config, dtype, tmp_path / "saved"), config, dtype)


@pytest.mark.gpu
@GPUS
@MESHES
@DTYPES
def test_on_gpus_too(run: Run, tmp_path: Path, config: MeshConfig, dtype: torch.dtype | None) -> None:
    check_ranks(run(train_all_ways, 2, config, dtype, tmp_path / "saved"), config, dtype)


@pytest.mark.parametrize("config", [MeshConfig(shard=2, ep=2), MeshConfig(shard=4, ep=2)], ids=lambda c: f"{c.shard}")
def test_moments_of_spread_experts_are_like_others(run: Run, tmp_path: Path, config: MeshConfig) -> None:
    for found in run(train_experts_all_ways, config.shard, config, tmp_path / "saved"):
        check(found, torch.bfloat16)
