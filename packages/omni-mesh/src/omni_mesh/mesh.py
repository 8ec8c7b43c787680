"""The mesh itself: three named views of the same ranks, passed by hand and stored nowhere."""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from omni_mesh.spec import MeshSpec


@dataclass(frozen=True, slots=True)
class Mesh:
    """A resolved spec and the process groups that follow it, one per axis of each view."""

    spec: MeshSpec
    tokens: DeviceMesh
    """Which tokens a rank sees: (pp, dp, cp, sp, tp)."""
    params: DeviceMesh
    """Where dense parameters live: (pp, replicate, fsdp, tp)."""
    experts: DeviceMesh
    """Where experts live: (pp, replicate, efsdp, ep)."""

    def groups(self) -> list[dist.ProcessGroup]:
        """The groups of this rank, of every axis of every view."""
        return [group for view in (self.tokens, self.params, self.experts) for group in view.get_all_groups()]


def make_mesh(spec: MeshSpec, *, device_type: str = "cuda") -> Mesh:
    """The views of `spec` over the ranks of the joined world, on devices of `device_type`.

    Effect: creates process groups, a collective: every rank calls it, with an equal spec. Raises `ValueError` when no
    world is joined, or when its size is not `spec.world`.
    """
    if not dist.is_initialized():
        raise ValueError("No world is joined, so there are no ranks to lay out. Call make_mesh inside `join_world()`.")
    if (size := dist.get_world_size()) != spec.world:
        raise ValueError(
            f"The mesh has {spec.world} ranks, but the world has {size}. Resolve it with resolve_mesh(config, {size})."
        )
    tokens, params, experts = (
        init_device_mesh(device_type, tuple(view.values()), mesh_dim_names=tuple(view))
        for view in (spec.tokens, spec.params, spec.experts)
    )
    return Mesh(spec, tokens, params, experts)
