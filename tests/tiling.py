"""Feed-forward modules in tiles, against plain transformers: what a rank of `test_tiles` compares."""

import copy
from collections.abc import Mapping

from experts import grads_of, make_mixture, place, step
from sequence import packed, plain_loss, worst_error

from omni_mesh import MeshConfig, join_world, make_mesh, resolve_mesh
from omni_models import describe, fitting_kernels
from omni_models.fused import make_triton
from omni_models.kernels import apply_kernels
from omni_parallel import RecomputeConfig

ROWS = ((9, 1, 20, 7), (23, 3, 11))
"""Documents of two rows of 37 tokens."""
MESHES = {"shard 2": MeshConfig(shard=2), "sp 2": MeshConfig(shard=1, sp=2)}
SPREAD = {"shard 2, ep 2": MeshConfig(shard=2, ep=2)}
"""For what has experts beside its feed-forward modules."""


def errors_of(
    name: str, tiles: tuple[int, ...], every: int, fused: bool
) -> Mapping[tuple[str, int], tuple[float, float, str]]:
    """By mesh and tokens of a tile: the relative error of the loss, and that of the worst gradient, and whose."""
    found = {}
    with join_world(device="cpu") as world:
        start = make_mixture(name)
        plain = copy.deepcopy(start)
        loss = plain_loss(plain, packed(ROWS)[2])
        theirs = {key: param.grad for key, param in plain.named_parameters()}
        start = apply_kernels(start, make_triton(), fitting_kernels(start)) if fused else start
        for label, config in (MESHES | (SPREAD if describe(start).experts else {})).items():
            mesh = make_mesh(resolve_mesh(config, world.size), device_type="cpu")
            for tile in tiles:
                ours = place(copy.deepcopy(start), mesh, RecomputeConfig(every), tile=tile)
                off = abs(step(ours, mesh, ROWS) - loss) / loss
                found[label, tile] = (off, *worst_error(grads_of(ours), theirs))
    return found
