"""The few values that must agree across ranks: sums, the gradient norm, small objects. Effects: collectives."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement
from torch.nn.utils import get_total_norm

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
    """The global 2-norm of all gradients (scalar, fp32), which are scaled in place so that it is at most `max_norm`.

    Exact for any mix of meshes: squares are summed over the mesh axes a gradient is sharded on and counted once over
    those it is replicated on. One all-reduce per kind of placement; no host synchronisation. The scale is
    `max_norm / (norm + 1e-6)`, as in `torch.nn.utils.clip_grad_norm_`; an infinite `max_norm` only measures.

    Raises:
        ValueError: if a gradient still holds partial sums, whose norm is not defined.
    """
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
    norm = torch.stack([_square_sum(grads, kind, device) for kind, grads in kinds.items()]).sum().sqrt()
    if max_norm != float("inf"):
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for grads in filter(None, kinds.values()):
            # The list form is what keeps this at one kernel for all gradients; torch has no public name for it.
            torch._foreach_mul_(grads, scale)  # pyright: ignore[reportPrivateImportUsage]
    return norm


def _square_sum(grads: Sequence[Tensor], kind: Kind, device: torch.device) -> Tensor:
    """The sum of squares (scalar, fp32) of gradients that live in one kind of place."""
    # torch.nn.utils measures many tensors with few kernels; it refuses an empty one, which a small shard may be.
    filled = [grad.float() for grad in grads if grad.numel()]
    total = get_total_norm(filled).square() if filled else torch.zeros((), device=device)
    if kind is not None:
        mesh, placements = kind
        for dim, place in enumerate(placements):
            if not place.is_replicate():
                dist.all_reduce(total, group=mesh.get_group(dim))
    return total
