"""Device meshes as values, and the ranks that live on them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from omni_mesh.launching import Refused as Refused
    from omni_mesh.launching import launch as launch
    from omni_mesh.launching import planned_ranks as planned_ranks
    from omni_mesh.mesh import Mesh as Mesh
    from omni_mesh.mesh import make_mesh as make_mesh
    from omni_mesh.signals import Requests as Requests
    from omni_mesh.signals import heed_signals as heed_signals
    from omni_mesh.signals import ignore_saves as ignore_saves
    from omni_mesh.spec import MeshConfig as MeshConfig
    from omni_mesh.spec import MeshSpec as MeshSpec
    from omni_mesh.spec import coords as coords
    from omni_mesh.spec import peers as peers
    from omni_mesh.spec import ranks_asked as ranks_asked
    from omni_mesh.spec import resolve_mesh as resolve_mesh
    from omni_mesh.started import world_size as world_size
    from omni_mesh.watchdog import STALLED as STALLED
    from omni_mesh.watchdog import Watchdog as Watchdog
    from omni_mesh.watchdog import watch_stalls as watch_stalls
    from omni_mesh.world import World as World
    from omni_mesh.world import join_world as join_world
    from omni_mesh.world import set_timeouts as set_timeouts

_HOMES: Final = {
    "launching": "Refused launch planned_ranks",
    "mesh": "Mesh make_mesh",
    "signals": "Requests heed_signals ignore_saves",
    "spec": "MeshConfig MeshSpec coords peers ranks_asked resolve_mesh",
    "started": "world_size",
    "watchdog": "STALLED Watchdog watch_stalls",
    "world": "World join_world set_timeouts",
}
"""Where names are. A module is imported with the first of its names that is asked for, torch with it."""

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


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names.split()), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *(name for names in _HOMES.values() for name in names.split())})
