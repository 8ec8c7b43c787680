"""The contract table: every way to cut the same work over ranks gives the numbers of plain transformers on one rank.

A new transform adds one row to `CUTS`, and a new kind of model one to `training.FAMILIES`.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from ranks import Run
from request import Config
from training import FAMILIES, SMALL, train, train_plainly, write_family

from omni_mesh import MeshConfig
from omni_parallel import RecomputeConfig

CUTS = {
    "one rank": (1, {}),
    "one rank, microbatches of 3": (1, {"micro": 3}),
    "one rank, microbatches of 1": (1, {"micro": 1}),
    "recompute all": (1, {"recompute": RecomputeConfig(every=1)}),
    "full logits": (1, {"loss": "full"}),
    "eager attention": (1, {"attention": "eager"}),
    "one rank, tiles of 100 tokens": (1, {"tile_mlp": 100}),
    "shard 2": (2, {"mesh": MeshConfig(shard=2)}),
    "shard 2, microbatches of 2": (2, {"mesh": MeshConfig(shard=2), "micro": 2}),
    "shard 2, recompute every second": (2, {"mesh": MeshConfig(shard=2), "recompute": RecomputeConfig(every=2)}),
    "replicate 2": (2, {"mesh": MeshConfig(replicate=2)}),
    "shard 3": (3, {"mesh": MeshConfig(shard=3)}),
    "replicate 2 x shard 2": (4, {"mesh": MeshConfig(replicate=2, shard=2)}),
    "replicate 2 x shard 2, microbatches of 1": (4, {"mesh": MeshConfig(replicate=2, shard=2), "micro": 1}),
    "shard 4, recompute all": (4, {"mesh": MeshConfig(shard=4), "recompute": RecomputeConfig(every=1)}),
    "shard 2, tiles of 50 tokens, microbatches of 2, recompute all": (
        2,
        {"mesh": MeshConfig(shard=2), "tile_mlp": 50, "micro": 2, "recompute": RecomputeConfig(every=1)},
    ),
    "sp 2, tiles longer than all": (2, {"mesh": MeshConfig(shard=1, sp=2), "tile_mlp": 1000}),
    "sp 2": (2, {"mesh": MeshConfig(shard=1, sp=2)}),
    "sp 3": (3, {"mesh": MeshConfig(shard=1, sp=3), "recompute": RecomputeConfig(every=1)}),
    "sp 4": (4, {"mesh": MeshConfig(shard=1, sp=4), "attention": "eager", "loss": "full"}),
    "sp 2, in 2 chunks, recompute all but attention": (
        2,
        {
            "mesh": MeshConfig(shard=1, sp=2),
            "sp_chunks": 2,
            "micro": 3,
            "recompute": RecomputeConfig(every=1, keep="attention"),
        },
    ),
    "shard 2 x sp 2": (4, {"mesh": MeshConfig(shard=2, sp=2), "micro": 2}),
    "replicate 2 x sp 2": (4, {"mesh": MeshConfig(replicate=2, shard=1, sp=2)}),
    "shard 2, ep 2, microbatches of 2": (2, {"mesh": MeshConfig(shard=2, ep=2), "micro": 2}),
    "shard 4, ep 2, recompute all but matmuls": (
        4,
        {"mesh": MeshConfig(shard=4, ep=2), "recompute": RecomputeConfig(every=1, keep="matmuls")},
    ),
    "replicate 2 x shard 2, ep 2": (4, {"mesh": MeshConfig(replicate=2, shard=2, ep=2)}),
    "shard 2 x sp 2, ep 4": (4, {"mesh": MeshConfig(shard=2, sp=2, ep=4)}),
}
"""For each way: the number of ranks, and what it changes of the configuration."""

SPREAD = [cut for cut in CUTS if "ep " in cut]
ROWS = [
    *(("tiny", cut) for cut in CUTS if cut not in SPREAD),
    *(
        (family, cut)
        for family in FAMILIES
        for cut in ("one rank", "shard 2, microbatches of 2", "replicate 2 x shard 2", "sp 2")
        if family != "tiny"
    ),
    *(("qwen3_moe", cut) for cut in SPREAD),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    """The losses and gradient norms of plain transformers, by family, made when first asked for."""
    return {}


@pytest.mark.parametrize(("family", "cut"), ROWS)
def test_every_cut_equals_plain_transformers_on_one_rank(
    family: str, cut: str, run: Run, plain: dict[str, list[dict[str, float]]], tmp_path: Path
) -> None:
    ranks, changes = CUTS[cut]
    config: Config = replace(SMALL, model=write_family(family, tmp_path), out=tmp_path / "out", tokenizer="bytes")
    if family not in plain:
        plain[family] = run(train_plainly, 1, config)[0]
    ours = run(train, ranks, replace(config, **changes))[0]
    assert [row["step"] for row in ours] == [row["step"] for row in plain[family]]
    for mine, theirs in zip(ours, plain[family], strict=True):
        assert mine["targets"] == theirs["targets"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
