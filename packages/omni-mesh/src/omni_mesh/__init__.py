"""Device meshes as values, and the ranks that live on them."""

from omni_mesh.launch import Refused, launch, planned_ranks
from omni_mesh.mesh import Mesh, make_mesh
from omni_mesh.signals import Requests, heed_signals, ignore_saves
from omni_mesh.spec import MeshConfig, MeshSpec, coords, peers, ranks_asked, resolve_mesh
from omni_mesh.watchdog import STALLED, Watchdog, watch_stalls
from omni_mesh.world import World, join_world, set_timeouts, world_size

__all__ = [
    "Mesh",
    "MeshConfig",
    "MeshSpec",
    "Refused",
    "Requests",
    "STALLED",
    "Watchdog",
    "World",
    "coords",
    "heed_signals",
    "ignore_saves",
    "join_world",
    "launch",
    "make_mesh",
    "peers",
    "planned_ranks",
    "ranks_asked",
    "resolve_mesh",
    "set_timeouts",
    "watch_stalls",
    "world_size",
]
