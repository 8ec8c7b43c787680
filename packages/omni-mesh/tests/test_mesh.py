"""Laws of the views, against a process group that only pretends."""

from contextlib import contextmanager

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing._internal.distributed.fake_pg import FakeStore

from omni_mesh import MeshSpec, coords, make_mesh, peers

# Every axis above 1; ep borrows across the borders of sp and tp.
FULL = MeshSpec(pp=2, replicate=2, shard=2, cp=2, sp=2, tp=2, ep=8)


@contextmanager
def pretended_world(rank, size):
    """A default process group of `size` ranks, of which only `rank` exists."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@settings(max_examples=5, deadline=None)
@given(st.integers(0, FULL.world - 1))
@pytest.mark.parametrize("spec", [FULL, MeshSpec(replicate=2, shard=3, sp=2, tp=2, ep=3), MeshSpec()])
def test_meshes_agree_with_coords_and_peers(spec, seed):
    rank = seed % spec.world
    with pretended_world(rank, spec.world):
        mesh = make_mesh(spec, device_type="cpu")
        for view, sizes in ((mesh.tokens, spec.tokens), (mesh.params, spec.params), (mesh.experts, spec.experts)):
            assert view.mesh_dim_names == tuple(sizes)
            assert view.shape == tuple(sizes.values())
            for axis in sizes:
                assert view.get_local_rank(axis) == coords(spec, rank)[axis]
                assert tuple(dist.get_process_group_ranks(view.get_group(axis))) == peers(spec, rank, axis)


def test_a_mesh_of_another_size_than_the_world_is_refused():
    with (
        pretended_world(0, 4),
        pytest.raises(ValueError, match=r"has 2 ranks, but the world has 4. Resolve it with resolve_mesh\(config, 4\)"),
    ):
        make_mesh(MeshSpec(shard=2), device_type="cpu")


def test_a_mesh_needs_a_world():
    with pytest.raises(ValueError, match=r"No world is joined.*inside `join_world\(\)`"):
        make_mesh(MeshSpec(), device_type="cpu")
