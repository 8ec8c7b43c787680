"""Parts of a model that have plans and meshes of their own: a tower that every rank has whole, say, around it a decoder
whose rows, experts and parameters are spread.

A part is a module that is called as one, by its name. What else is done to a model (attention, rows, encoders, experts)
is done to all of it, and before it is sharded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from omni_mesh import Mesh
from omni_parallel.fsdp import shard_fsdp
from omni_parallel.plan import ParallelPlan

M = TypeVar("M", bound=nn.Module)


def split_plan(plan: ParallelPlan, names: Sequence[str]) -> tuple[ParallelPlan, dict[str, ParallelPlan]]:
    """The plan of a model without some of its parts, and by name the plan of each part, in its own names. Pure.

    >>> whole = ParallelPlan(blocks=("tower.0", "text.0"), recompute=("tower.0",))
    >>> rest, parts = split_plan(whole, ["tower"])
    >>> rest.blocks, rest.recompute, parts["tower"].blocks, parts["tower"].recompute
    (('text.0',), (), ('0',), ('0',))

    Raises:
        ValueError: if a part is in another, or around the decoder.
    """
    problems = [
        f"{name} is a part of {outer}, and both cannot be sharded apart: name one of them."
        for name in names
        for outer in names
        if name.startswith(f"{outer}.")
    ]
    problems += [
        f"{name} holds the decoder {plan.decoder}: the model around is what is sharded with it, so leave it out."
        for name in names
        if f"{plan.decoder}.".startswith(f"{name}.")
    ]
    if problems:
        raise ValueError("these parts cannot have plans of their own:\n" + "\n".join(f"  - {p}" for p in problems))
    rest = replace(plan, **{key: _outside(listed, names) for key, listed in _lists(plan).items()})
    # Rows and heads are cut in the model around.
    alone = replace(plan, head="", decoder="", door="", rotaries=(), sp_chunks=1)
    return rest, {
        name: replace(alone, **{key: _inside(listed, name) for key, listed in _lists(alone).items()}) for name in names
    }


def shard_parts(
    model: M,
    meshes: Mapping[str, Mesh],
    plans: Mapping[str, ParallelPlan],
    *,
    param_dtype: torch.dtype = torch.bfloat16,
    reduce_dtype: torch.dtype = torch.float32,
) -> M:
    """The same model, each of whose parts is sharded on a mesh of its own. Donates `model`.

    `shard_fsdp` of the model, by the plan without them, comes after.

    Args:
        model: with everything else applied.
        meshes: by name of the part, over the same ranks: `MeshConfig(replicate=-1, shard=1)` has it whole on each.
        plans: likewise, as `split_plan` gives them.
        param_dtype: as for `shard_fsdp`.
        reduce_dtype: likewise.

    Raises:
        ValueError: if a part has no plan, or a plan no mesh.
    """
    if odd := sorted(set(meshes) ^ set(plans)):
        raise ValueError(f"parts with a mesh are not those with a plan: {', '.join(odd)}. Give each of them both.")
    for name, mesh in meshes.items():
        how = {"param_dtype": param_dtype, "reduce_dtype": reduce_dtype}
        shard_fsdp(model.get_submodule(name), mesh, plans[name], **how)
    return model


def _lists(plan: ParallelPlan) -> dict[str, tuple[str, ...]]:
    """The fields that name modules one by one."""
    return {
        "blocks": plan.blocks,
        "recompute": plan.recompute,
        "keep_matmuls": plan.keep_matmuls,
        "offload": plan.offload,
        "rotaries": plan.rotaries,
        "experts": plan.experts,
        "tiled": plan.tiled,
        "compile": plan.compile,
        "uncompiled": plan.uncompiled,
    }


def _outside(listed: tuple[str, ...], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(module for module in listed if not any(f"{module}.".startswith(f"{name}.") for name in names))


def _inside(listed: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(module.removeprefix(f"{name}.") for module in listed if module.startswith(f"{name}."))
