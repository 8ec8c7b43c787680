"""Device meshes as values, and the ranks that live on them."""

from omni_mesh.launch import launch as launch, planned_ranks as planned_ranks
from omni_mesh.mesh import Mesh as Mesh, make_mesh as make_mesh
from omni_mesh.spec import (
    MeshConfig as MeshConfig,
    MeshSpec as MeshSpec,
    coords as coords,
    peers as peers,
    ranks_asked as ranks_asked,
    resolve_mesh as resolve_mesh,
)
from omni_mesh.world import World as World, join_world as join_world, world_size as world_size
