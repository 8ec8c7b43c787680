"""The few values that must agree across ranks: sums, the gradient norm, small objects. Effects: collectives."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement

from omni_parallel.fsdp import reshard
from omni_parallel.local import fuses, local

T = TypeVar("T")
Kind = tuple[DeviceMesh, tuple[Placement, ...]] | None
"""Where a tensor lives: its mesh and placements, or None for a plain tensor, which every rank holds whole."""


def global_sum(x: Tensor) -> Tensor:
    """The sum of `x` over every rank of the world, in its shape and dtype; `x` is untouched. Collective."""
    total = x.clone()
    dist.all_reduce(total)
    return total


def gather_objects(value: T) -> list[T]:
    """The `value` of every rank, in rank order. Collective; for small values that pickle, off the hot path."""
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # pyright: ignore[reportReturnType]


@torch.no_grad()
def clip_grads_(model: nn.Module, max_norm: float) -> Tensor:
    """The `grad_norm` of `model`, whose gradients are scaled in place so that it is at most `max_norm`.

    `update(state, schedule, scale=clip_scale(norm, max_norm))` does the same without a pass over them of its own. No
    host synchronisation; an infinite `max_norm` only measures.
    """
    norm = grad_norm(model)
    if max_norm != float("inf"):
        held = [param for param in model.parameters() if param.grad is not None]
        for param in held:
            # Scaled where it is narrower than its parameter, a gradient would be rounded.
            param.grad = param.grad.to(param.dtype)  # pyright: ignore[reportOptionalMemberAccess]
        scale = clip_scale(norm, max_norm)
        for grads in _by_dtype([local(param.grad) for param in held]):
            # The list form is what keeps this at one kernel for all gradients; torch has no public name for it.
            torch._foreach_mul_(grads, scale)  # pyright: ignore[reportPrivateImportUsage]
    return norm


def clip_scale(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of such a norm are multiplied by so that it is at most `max_norm` (scalar): at most one.

    `max_norm / (norm + 1e-6)`, as in `torch.nn.utils.clip_grad_norm_`. Pure.

    >>> clip_scale(torch.tensor(4.0), 1.0)
    tensor(0.2500)
    """
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


@torch.no_grad()
def grad_norm(model: nn.Module) -> Tensor:
    """The global 2-norm of all gradients of `model` (scalar, fp32).

    Exact for any mix of meshes: squares are summed over the mesh axes a gradient is sharded on and counted once over
    those it is replicated on. One all-reduce per kind of placement; no host synchronisation.

    Raises:
        ValueError: if a gradient still holds partial sums, whose norm is not defined.
    """
    reshard(model)  # Gathered for an evaluation, a parameter shows no gradient.
    kinds: dict[Kind, list[Tensor]] = defaultdict(list)
    for name, param in model.named_parameters():
        # Kinds come from parameters, not gradients, so that every rank joins the same collectives.
        kind = (param.device_mesh, param.placements) if isinstance(param, DTensor) else None
        grads = kinds[kind]
        if isinstance(param.grad, DTensor):
            if any(isinstance(place, Partial) for place in param.grad.placements):
                raise ValueError(f"the gradient of {name} is a partial sum ({param.grad.placements}): reduce it first.")
            grads.append(param.grad.to_local())
        elif param.grad is not None:
            grads.append(param.grad)
    device = next(model.parameters()).device
    return torch.stack([_square_sum(grads, kind, device) for kind, grads in kinds.items()]).sum().sqrt()


def _square_sum(grads: Sequence[Tensor], kind: Kind, device: torch.device) -> Tensor:
    """The sum of squares (scalar, fp32) of gradients that live in one kind of place."""
    filled = [grad for grad in grads if grad.numel()]
    total = torch.zeros((), device=device)
    if filled and all(fuses(grad) for grad in filled):
        from omni_parallel import triton_norm

        total = triton_norm.square_sum(filled)
    elif filled:
        norms = [norm.float() for alike in _by_dtype(filled) for norm in _norms(alike)]
        total = torch.stack(norms).square().sum()
    if kind is not None:
        mesh, placements = kind
        for dim, place in enumerate(placements):
            if not place.is_replicate():
                dist.all_reduce(total, group=mesh.get_group(dim))
    return total


def _norms(tensors: list[Tensor]) -> Sequence[Tensor]:
    """The norm of each, summed in fp32 at least, with few kernels for many tensors of one dtype."""
    # torch has no public name for it.
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch._foreach_norm(tensors, 2, dtype=dtype)  # pyright: ignore[reportPrivateImportUsage]


def _by_dtype(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.dtype].append(tensor)
    return list(groups.values())
