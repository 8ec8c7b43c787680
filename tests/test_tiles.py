"""The law of feed-forward modules in tiles: loss and every gradient are those of plain transformers on one rank."""

import pytest
import torch
from memory import peak_of
from ranks import Run
from sequence import TOLERANCE
from tiling import MESHES, SPREAD, errors_of
from torch import nn
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaMLP

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
