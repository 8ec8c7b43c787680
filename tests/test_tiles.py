"""The law of feed-forward modules in tiles: loss and every gradient are those of plain transformers on one rank."""

from dataclasses import replace

import pytest
import torch
from decide import decide
from memory import peak_of
from place import place
from ranks import Run
from sequence import TOLERANCE
from tiling import MESHES, SPREAD, errors_of
from torch import nn
from training import SMALL
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from omni_mesh import join_world, make_mesh
from omni_models import fill_weights
from omni_parallel import ParallelPlan, tile_mlps

TILES = (4, 37, 1000)
"""Tokens that divide neither the row nor what a rank has of it; that divide some; and more than there are."""


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("name", ["llama", "llama, fused", "phi3", "gpt2", "gemma2", "deepseek_v3"])
def test_loss_and_every_gradient_are_those_of_plain_transformers(run: Run, name: str, every: int) -> None:
    kind, _, fused = name.partition(", ")
    found = run(errors_of, 2, kind, TILES, every, bool(fused))[0]
    meshes = [*MESHES, *(SPREAD if kind == "deepseek_v3" else ())]
    assert found.keys() == {(mesh, tile) for mesh in meshes for tile in TILES}
    for off, worst, whose in found.values():
        assert off <= TOLERANCE
        assert worst <= TOLERANCE, whose


def test_memory_is_that_of_one_tile() -> None:
    tokens, tile, inner = 8192, 256, 1024
    config = AutoConfig.for_model("llama", hidden_size=128, intermediate_size=inner)
    x, d_out = torch.randn(2, 1, tokens, 128)

    def peak(model: nn.Module) -> int:
        model(x[:, :9]).sum().backward()
        return peak_of(lambda: model(x.requires_grad_()).backward(d_out))[1]

    plan = ParallelPlan(blocks=(), tiled=("0",), tile=tile)
    one = tokens * inner * 4
    """Bytes of one tensor inside, of all tokens."""
    assert peak(nn.Sequential(LlamaMLP(config))) > 4 * one
    assert peak(tile_mlps(nn.Sequential(LlamaMLP(config)), plan)) < one


def test_an_app_tiles_what_it_is_asked_to() -> None:
    config = replace(SMALL, tile_mlp=7, dtype="float32", kernels="none")
    with join_world(device="cpu"), torch.no_grad():
        run = decide(config, 1)
        model = fill_weights(place(config, run, make_mesh(run.spec, device_type="cpu")), None)
        sizes = []
        for name in run.plan.tiled:
            model.get_submodule(f"{name}.act_fn").register_forward_hook(
                lambda module, args, out: sizes.append(out.shape)
            )
        model(input_ids=torch.arange(20)[None])
    assert [shape[:2] for shape in sizes] == [(1, 7), (1, 7), (1, 6)] * 4
