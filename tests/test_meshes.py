"""A run goes from mesh to mesh, in any order: its state to the bit, its losses to 1e-6."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import Run
from training import SMALL, train, write_family
from trouble import train_and_copy
from uneven import load_each, save_again, train_uneven

from omni_ckpt import latest, load_dcp, stored
from omni_mesh import MeshConfig

MESHES = {
    "shard 4": MeshConfig(shard=4),
    "shard 2 x sp 2": MeshConfig(shard=2, sp=2),
    "shard 2, ep 2": MeshConfig(shard=2, ep=2),
    "replicate 2 x shard 2": MeshConfig(replicate=2, shard=2),
    "one rank": MeshConfig(shard=1),
}
ORDERS = (
    ("shard 4", "shard 2 x sp 2", "shard 2, ep 2", "replicate 2 x shard 2", "one rank"),
    ("one rank", "shard 2, ep 2", "shard 4", "replicate 2 x shard 2", "shard 2 x sp 2"),
    ("replicate 2 x shard 2", "shard 4", "one rank", "shard 2 x sp 2", "shard 2, ep 2"),
)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    here = {name: torch.zeros(spec.shape, dtype=spec.dtype) for name, spec in stored(path).items()}
    return dict(load_dcp(here, path, strict=False))


@pytest.mark.parametrize("order", ORDERS, ids=" > ".join)
def test_a_run_goes_from_mesh_to_mesh(order: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    model = write_family("qwen3_moe", tmp_path)
    config = replace(SMALL, model=model, tokenizer="bytes", steps=5, out=tmp_path / "run")
    whole = run(train, 1, replace(config, out=tmp_path / "whole"))[0]
    rows = []
    for step, name in enumerate(order, 1):
        mesh, before = MESHES[name], latest(config.out)
        ranks = mesh.replicate * mesh.shard * mesh.sp
        copy = tmp_path / f"copy-{step}"
        rows = run(train_and_copy, ranks, replace(config, mesh=mesh, stop_after=step), copy)[0]
        if before is not None:
            was, now = tensors_of(before), tensors_of(copy)
            assert was.keys() == now.keys()
            assert all(torch.equal(was[key], now[key]) for key in was), f"on the way to {name}"
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    for mine, theirs in zip(rows, whole, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)


def test_dims_that_no_number_of_ranks_divides_go_from_any_number_to_any_other(run: Run, tmp_path: Path) -> None:
    meshes = {str(ranks): MeshConfig(shard=ranks) for ranks in (4, 3, 2, 1)}
    meshes["2 x 2"] = MeshConfig(replicate=2, shard=2)
    ranks = {name: mesh.replicate * mesh.shard for name, mesh in meshes.items()}
    paths = {name: tmp_path / name for name in meshes}
    (expected,) = set(run(train_uneven, 4, meshes["4"], paths["4"]))
    for name in list(meshes)[1:]:
        run(save_again, ranks[name], meshes[name], paths["4"], paths[name])
    for name, mesh in meshes.items():
        (found,) = {tuple(each.items()) for each in run(load_each, ranks[name], mesh, paths)}
        before = dict(found).pop("none")
        assert found[1:] == tuple((source, expected) for source in paths), f"on {name}"
        assert before != expected
