"""Fully sharded data parallelism: parameters, gradients and moments over the params view of the mesh.

FSDP2 (Zhao et al., 2023, arXiv:2304.11277) with ZeRO's stages (Rajbhandari et al., 2019, arXiv:1910.02054); hybrid
sharding where the mesh has replicas. Gradients are summed, never averaged: the loss is already divided by the number
of targets of the whole world, so the sum is the exact gradient however the batch was cut.
"""

from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from omni_mesh import Mesh
from omni_parallel.alone import cast, compute_alone, forget_casts_
from omni_parallel.narrow import NarrowSum, is_one_host
from omni_parallel.plan import ParallelPlan, has_shared_experts

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

    Of a rank that is alone in the world parameters stay plain tensors, on its device: see `omni_parallel.alone`.

    Args:
        model: on any device, also "meta"; its parameters keep their dtype as the master copy.
        mesh: parameters are split over fsdp and copied over replicate; those of spread experts are split over efsdp.
        plan: names the units and says how early they are gathered.
        param_dtype: dtype of compute, to which parameters and inputs are cast.
        reduce_dtype: dtype in which gradients are summed over ranks, and sums travel between replicas. Between ranks of
            one host gradients travel in `param_dtype`, in which they are made: see `omni_parallel.narrow`.

    Raises:
        ValueError: if experts were not spread by `apply_ep`.
    """
    if mesh.spec.world == 1:
        return compute_alone(_bring(model, mesh), param_dtype)
    return shard_units(model, mesh, plan, param_dtype=param_dtype, reduce_dtype=reduce_dtype)


def shard_units(
    model: M, mesh: Mesh, plan: ParallelPlan, *, param_dtype: torch.dtype, reduce_dtype: torch.dtype = torch.float32
) -> M:
    """`shard_fsdp` on any number of ranks, also on one. Donates `model`.

    Each block of `plan.blocks` is gathered, used and freed as one unit, so is `plan.head`; what is left is the unit
    around them. The head, whose backward pass follows at once, and the unit around are not freed between.
    Experts that `apply_ep` has spread are units of their own, on the experts view; their inputs keep the dtype they
    come in.
    Where each expert is on one rank alone, there is nothing to gather or to sum: see `apply_cast`.
    """
    dense = mesh.params["replicate", "fsdp"] if mesh.spec.replicate > 1 else mesh.params["fsdp"]
    sparse = mesh.experts["replicate", "efsdp"] if mesh.spec.replicate > 1 else mesh.experts["efsdp"]
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype)
    # Inside a block what comes is in the dtype that the model wants: the weights of choices may be wider than the rest.
    as_it_comes = replace(policy, cast_forward_inputs=False)
    shared, alone = (plan.experts, ()) if has_shared_experts(mesh.spec) else ((), plan.experts)
    lonely = [apply_cast(model.get_submodule(name), param_dtype) for name in alone]
    here = {param for module in lonely for param in module.parameters(recurse=False)}
    if not all(isinstance(param, DTensor) for param in here):
        raise ValueError(f"experts are whole on each of ep={mesh.spec.ep} ranks: apply_ep comes before shard_fsdp.")
    sent = param_dtype if shared and is_one_host(mesh.experts["efsdp"].get_group()) else None
    for name in shared:
        cut = partial(cut_expert, mesh.spec.efsdp)
        frees = plan.reshard_after_forward
        expert = model.get_submodule(name)
        fully_shard(expert, mesh=sparse, mp_policy=as_it_comes, reshard_after_forward=frees, shard_placement_fn=cut)
        _sum(expert, sent)
    sent = param_dtype if is_one_host(mesh.params["fsdp"].get_group()) else None
    units = (*plan.blocks, *((plan.head,) if plan.head else ()))
    for name in (*units, ""):
        frees = plan.reshard_after_forward and name in plan.blocks
        unit = model.get_submodule(name)
        fully_shard(unit, mesh=dense, mp_policy=policy, reshard_after_forward=frees, ignored_params=here)
        _sum(unit, sent)
    if mesh.spec.fsdp > 1:
        order = unit_order(units, shared)
        _prefetch([[model.get_submodule(name) for name in names] for names in order], plan.prefetch)
    return model


def reshard(model: nn.Module) -> nn.Module:
    """The same model, none of whose parameters is gathered, as some are after a forward pass without a backward pass.
    Donates `model`."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
        forget_casts_(module)
    return model


def _bring(model: M, mesh: Mesh) -> M:
    """The same model with all that is not on "meta" on this rank's device, as FSDP2 would have it. Donates `model`."""
    kind = mesh.params.device_type
    device = torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_meta:
            tensor.data = tensor.data.to(device)
    return model


def _sum(unit: nn.Module, dtype: torch.dtype | None) -> None:
    """Gradients of `unit` are summed over ranks, as they are; they are sent in `dtype`, or in that of the sum."""
    assert isinstance(unit, FSDPModule)
    if dtype is not None:
        unit.set_custom_reduce_scatter(NarrowSum(dtype))
    # With a factor other than one NCCL would be asked for a fused multiply, which gloo lacks and which rounds.
    unit.set_gradient_divide_factor(1.0)
    unit.set_force_sum_reduction_for_comms(True)


def apply_cast(module: M, dtype: torch.dtype) -> M:
    """The same module, whose calls see its own parameters in `dtype`. Donates `module`.

    What a product needs of the cast ones for its gradient is kept until the backward pass; casts that an update has
    kept are taken as they are. A gradient stays in `dtype`, in which it was made, so that nothing is widened that is
    read once; where a later backward pass brings a second, they add up in the dtype of the parameter.
    """
    names = [name for name, _ in module.named_parameters(recurse=False)]

    def show(module: nn.Module, args: object) -> None:
        # Found before the parameters of the same names, which stay what they are.
        own: dict[str, Any] = {name: module._parameters[name] for name in names}
        vars(module).update({n: param if param.dtype == dtype else cast([param], dtype)[0] for n, param in own.items()})

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
