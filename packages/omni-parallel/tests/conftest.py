"""A world of one rank, in memory."""

from collections.abc import Iterator

import pytest

from omni_mesh import MeshConfig, join_world, make_mesh, resolve_mesh
from omni_mesh.mesh import Mesh


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    """The mesh of one CPU rank."""
    with join_world(device="cpu"):
        yield make_mesh(resolve_mesh(MeshConfig(), 1), device_type="cpu")
