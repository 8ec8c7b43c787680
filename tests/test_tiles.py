"""The law of feed-forward modules in tiles: loss and every gradient are those of plain transformers on one rank."""

import pytest
from ranks import Run
from sequence import TOLERANCE
from tiling import MESHES, errors_of

TILES = (4, 37, 1000)
"""Tokens that divide neither the row nor what a rank has of it; that divide some; and more than there are."""


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("name", ["llama", "phi3", "gemma2", "deepseek_v3"])
def test_loss_and_every_gradient_are_those_of_plain_transformers(run: Run, name: str, every: int) -> None:
    found = run(errors_of, 2, name, TILES, every)[0]
    assert found.keys() == {(mesh, tile) for mesh in MESHES for tile in TILES}
    for off, worst, whose in found.values():
        assert off <= TOLERANCE
        assert worst <= TOLERANCE, whose
