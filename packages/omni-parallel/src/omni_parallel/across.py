"""Tokens on their way between ranks: the collectives that move and add them, each with its transpose.

Dimensions: T tokens of this rank, K choices a token, U tokens sent, P ranks of the group, X features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Collective = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Across:
    """A collective that only moves and adds tokens; backward, the one that is its transpose."""

    there: Collective
    back: Collective

    def __call__(self, x_TX: Tensor) -> Tensor:
        return _Across.apply(x_TX, self)  # pyright: ignore[reportReturnType]


class _Across(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TX: Tensor, across: Across) -> Tensor:
        ctx.across = across
        return across.there(x_TX)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return ctx.across.back(grads[0]), None


class Pick(torch.autograd.Function):
    """What is sent of each token; backward, gradients of what was sent are summed in the order of its choices."""

    @staticmethod
    def forward(ctx: Any, x_TX: Tensor, token_U: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(place_TK)
        return x_TX[token_U]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return _put(grads[0], ctx.saved_tensors[0]), None, None


class Put(torch.autograd.Function):
    """What comes back of each token, summed in the order of its choices."""

    @staticmethod
    def forward(ctx: Any, x_UX: Tensor, token_U: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(token_U)
        return _put(x_UX, place_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return grads[0][ctx.saved_tensors[0]], None, None


def _put(x_UX: Tensor, place_TK: Tensor) -> Tensor:
    # A choice for which nothing was sent adds a row of zeros.
    return F.pad(x_UX, (0, 0, 0, 1))[place_TK.clamp(max=len(x_UX))].sum(1)


def gather(x_TX: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The `x_TX` of all ranks, which have the same shape, one after the other."""
    whole = x_TX.new_empty(group.size() * len(x_TX), *x_TX.shape[1:])
    dist.all_gather_into_tensor(whole, x_TX.contiguous(), group=group)
    return whole


def sum_scatter(x_TX: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of all ranks' `x_TX`, of which each rank keeps its part, in the dtype of `x_TX`; added up in fp32."""
    parts = (group.size(), len(x_TX) // group.size(), *x_TX.shape[1:])
    if x_TX.dtype.itemsize < 4:
        # A reduction would round each time it adds; sent as it is, half as much goes around, and one sum rounds once.
        arrived = torch.empty_like(x_TX, memory_format=torch.contiguous_format)
        dist.all_to_all_single(arrived, x_TX.contiguous(), group=group)
        first, *others = arrived.view(parts)
        # Two are added by an operator that is faster than a sum, and rounds once too.
        return first + others[0] if len(others) == 1 else arrived.view(parts).sum(0)
    part = x_TX.new_empty(parts[1:])
    dist.reduce_scatter_tensor(part, x_TX.contiguous(), group=group)
    return part


def exchange(x_UX: Tensor, going: list[int], coming: list[int], group: dist.ProcessGroup) -> Tensor:
    """What the ranks sent to this one: `going` rows of `x_UX` go to each, in order, and `coming` come."""
    arrived = x_UX.new_empty(sum(coming), *x_UX.shape[1:])
    dist.all_to_all_single(arrived, x_UX.contiguous(), coming, going, group=group)
    return arrived
