"""Fully sharded data parallelism: parameters, gradients and moments over the params view of the mesh.

FSDP2 (Zhao et al., 2023, arXiv:2304.11277) with ZeRO's stages (Rajbhandari et al., 2019, arXiv:1910.02054); hybrid
sharding where the mesh has replicas. Gradients are summed, never averaged: the loss is already divided by the number
of targets of the whole world, so the sum is the exact gradient however the batch was cut.
"""

from typing import TypeVar

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from omni_mesh import Mesh
from omni_parallel.plan import ParallelPlan

M = TypeVar("M", bound=nn.Module)


def shard_fsdp(
    model: M,
    mesh: Mesh,
    plan: ParallelPlan,
    *,
    param_dtype: torch.dtype = torch.bfloat16,
    reduce_dtype: torch.dtype = torch.float32,
) -> M:
    """The same model with every parameter a DTensor on the params view of `mesh`. Donates `model`.

    Each block of `plan.blocks` is gathered, used and freed as one unit; what is left is the unit around them.

    Args:
        model: on any device, also "meta"; its parameters keep their dtype as the master copy.
        mesh: parameters are split over fsdp and copied over replicate.
        plan: names the units and says how early they are gathered.
        param_dtype: dtype of compute, to which parameters and inputs are cast.
        reduce_dtype: dtype in which gradients are summed over ranks.
    """
    view = mesh.params["replicate", "fsdp"] if mesh.spec.replicate > 1 else mesh.params["fsdp"]
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype)
    units = [model.get_submodule(name) for name in plan.blocks]
    for unit in (*units, model):
        fully_shard(unit, mesh=view, mp_policy=policy, reshard_after_forward=plan.reshard_after_forward)
        assert isinstance(unit, FSDPModule)
        # With a factor other than one NCCL would be asked for a fused multiply, which gloo lacks and which rounds.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    if mesh.spec.fsdp > 1:
        _prefetch(units, plan.prefetch)
    return model


def _prefetch(units: list[nn.Module], depth: int) -> None:
    """Gather the next `depth` units while one computes, in the order of the forward pass and in its reverse."""
    for i in range(len(units)):
        ahead, behind = units[i + 1 : i + 1 + depth], units[max(0, i - depth) : i][::-1]
        units[i].set_modules_to_forward_prefetch(ahead)  # pyright: ignore[reportCallIssue]
        units[i].set_modules_to_backward_prefetch(behind)  # pyright: ignore[reportCallIssue]
