"""Fully sharded data parallelism: parameters, gradients and moments over the params view of the mesh.

FSDP2 (Zhao et al., 2023, arXiv:2304.11277) with ZeRO's stages (Rajbhandari et al., 2019, arXiv:1910.02054); hybrid
sharding where the mesh has replicas. Gradients are summed, never averaged: the loss is already divided by the number
of targets of the whole world, so the sum is the exact gradient however the batch was cut.
"""

from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

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

    Each block of `plan.blocks` is gathered, used and freed as one unit; what is left is the unit around them. Experts
    that `apply_ep` has spread are units of their own, on the experts view; their inputs keep the dtype they come in.
    Where each expert is on one rank alone, there is nothing to gather or to sum: its parameters are cast for the call,
    and what a product needs of the cast ones for its gradient is kept until then, whatever `reshard_after_forward`.

    Args:
        model: on any device, also "meta"; its parameters keep their dtype as the master copy.
        mesh: parameters are split over fsdp and copied over replicate; those of spread experts are split over efsdp.
        plan: names the units and says how early they are gathered.
        param_dtype: dtype of compute, to which parameters and inputs are cast.
        reduce_dtype: dtype in which gradients are summed over ranks.

    Raises:
        ValueError: if experts were not spread by `apply_ep`.
    """
    dense = mesh.params["replicate", "fsdp"] if mesh.spec.replicate > 1 else mesh.params["fsdp"]
    sparse = mesh.experts["replicate", "efsdp"] if mesh.spec.replicate > 1 else mesh.experts["efsdp"]
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype)
    # Inside a block what comes is in the dtype that the model wants: the weights of choices may be wider than the rest.
    as_it_comes = replace(policy, cast_forward_inputs=False)
    wrap = partial(fully_shard, reshard_after_forward=plan.reshard_after_forward)
    alone = plan.experts if mesh.spec.efsdp == mesh.spec.replicate == 1 else ()
    shared = plan.experts if not alone else ()
    lonely = [apply_cast(model.get_submodule(name), param_dtype) for name in alone]
    here = {param for module in lonely for param in module.parameters(recurse=False)}
    if not all(isinstance(param, DTensor) for param in here):
        raise ValueError(f"experts are whole on each of ep={mesh.spec.ep} ranks: apply_ep comes before shard_fsdp.")
    units = unit_order(plan.blocks, shared)
    for name in (*shared, *plan.blocks, ""):
        unit = model.get_submodule(name)
        if name in shared:
            placement = partial(cut_expert, mesh.spec.efsdp)
            wrap(unit, mesh=sparse, mp_policy=as_it_comes, shard_placement_fn=placement)
        else:
            wrap(unit, mesh=dense, mp_policy=policy, ignored_params=here)
        assert isinstance(unit, FSDPModule)
        # With a factor other than one NCCL would be asked for a fused multiply, which gloo lacks and which rounds.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    if mesh.spec.fsdp > 1:
        _prefetch([[model.get_submodule(name) for name in names] for names in units], plan.prefetch)
    return model


def apply_cast(module: M, dtype: torch.dtype) -> M:
    """The same module, whose calls see its own parameters in `dtype`. Donates `module`."""
    names = [name for name, _ in module.named_parameters(recurse=False)]

    def show(module: nn.Module, args: object) -> None:
        # Found before the parameters of the same names, which stay what they are.
        vars(module).update({name: module._parameters[name].to(dtype) for name in names})  # pyright: ignore[reportOptionalMemberAccess]

    def hide(module: nn.Module, args: object, output: object) -> None:
        for name in names:
            vars(module).pop(name, None)

    module.register_forward_pre_hook(show)
    module.register_forward_hook(hide, always_call=True)
    return module


def unit_order(blocks: tuple[str, ...], experts: tuple[str, ...]) -> list[list[str]]:
    """For each block, its name and those of the experts in it, which are gathered in that order. Pure.

    >>> unit_order(("layers.0", "layers.1", "layers.10"), ("layers.1.experts",))
    [['layers.0'], ['layers.1', 'layers.1.experts'], ['layers.10']]
    """
    return [[block, *(name for name in experts if name.startswith(f"{block}."))] for block in blocks]


def cut_expert(ranks: int, param: nn.Parameter) -> Shard:
    """Along which dim the ranks of efsdp share a parameter of experts that are spread over ep along the first.

    Along another dim than the first each rank's part is a plain block of the whole, which any reader of checkpoints
    understands; torch cuts it evenly only, and `plan_parallel` has seen to it that one of them can be.
    """
    return Shard(max(dim for dim in range(1, param.ndim) if param.shape[dim] % ranks == 0))


def _prefetch(blocks: list[list[nn.Module]], depth: int) -> None:
    """Gather what the next `depth` blocks need while one computes, in the order of the forward pass and its reverse.

    Backward, too, a block is asked for before the experts in it. Experts ask for nothing forward: where a block is
    recomputed their forward pass runs in the backward pass, and would gather the block after, which is done with.
    """
    for i, (block, *experts) in enumerate(blocks):
        ahead = [unit for units in blocks[i + 1 : i + 1 + depth] for unit in units]
        behind = [unit for units in blocks[max(0, i - depth) : i][::-1] for unit in units]
        block.set_modules_to_forward_prefetch([*experts, *ahead])  # pyright: ignore[reportCallIssue]
        block.set_modules_to_backward_prefetch([*experts, *behind])  # pyright: ignore[reportCallIssue]
