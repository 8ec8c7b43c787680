"""Attention with heads that suit its kernels: the weights around it are padded by zeros for the call.

The kernels of attention take heads of a multiple of 32 features. Those of others were padded before each call, and cut
after it: of Qwen2.5-VL's tower, with heads of 80, that was a seventh of the time on an H200. Here what makes queries,
keys and values makes the zeros too, and what reads the heads reads over them; for that only weights are padded, which
are a thousand times fewer. Zeros add nothing to a score and get none of a value; parameters, and so checkpoints, keep
their shape, and autograd cuts the padding off their gradients.

Dimensions: P patches, H features, N heads, D head dim, W head dim padded to.
"""

import copy
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni_models.padded import pads
from omni_models.proofs import UNFIT, copy_probe, draw, equals

_MULTIPLE: Final = 32


def round_heads(dim: int) -> int:
    """The head dim to compute with.

    >>> round_heads(80), round_heads(96)
    (96, 96)
    """
    return -(-dim // _MULTIPLE) * _MULTIPLE


class Wider:
    """An attention as it is, but that `qkv` makes heads of more features, of which the last are zeros, and `proj`
    reads them."""

    def __init__(self, own: nn.Module, dim: int) -> None:
        self.own, self.dim, self.more = own, dim, round_heads(dim) - dim

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def qkv(self, x_PH: Tensor) -> Tensor:
        """Queries, keys and values, (P, 3 N W)."""
        linear = self.own.qkv
        weight = F.pad(linear.weight.unflatten(0, (-1, self.dim)), (0, 0, 0, self.more)).flatten(0, 1)
        bias = linear.bias
        return F.linear(x_PH, weight, None if bias is None else self._pad(bias))

    def proj(self, x: Tensor) -> Tensor:
        """(P, H) of heads, (P, N W)."""
        linear = self.own.proj
        return F.linear(x, self._pad(linear.weight), linear.bias)

    def _pad(self, x: Tensor) -> Tensor:
        """(..., N D) -> (..., N W)."""
        return F.pad(x.unflatten(-1, (-1, self.dim)), (0, self.more)).flatten(-2)


def widen(forward: Callable[..., Any], dim: int, suits: Callable[..., bool] = pads) -> Callable[..., Any]:
    """A forward of an attention with heads of `dim` features, which are padded where that pays."""

    def forward_wide(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        wide = suits(hidden_states, self.qkv, self.proj)
        return forward(Wider(self, dim) if wide else self, hidden_states, *args, **kwargs)

    return forward_wide


def prove_heads(module: nn.Module, forward: Callable[..., Any]) -> int:
    """The head dim of an attention of patches if it may be padded, which is tried; 0 if it may not, or need not be.

    Args:
        module: an attention, also on the meta device.
        forward: its forward, which turns heads wider than tables by the first features alone.
    """
    dim = getattr(module, "head_dim", 0)
    linears = [getattr(module, name, None) for name in ("qkv", "proj")]
    known = isinstance(dim, int) and all(type(linear) is nn.Linear for linear in linears)
    if not known or not dim or round_heads(dim) == dim:
        return 0
    generator = torch.Generator().manual_seed(0)
    probe = copy_probe(module, {}, generator)
    angles = draw((6, dim // 2), generator).repeat(1, 2)
    given = {
        "hidden_states": draw((6, probe.qkv.in_features), generator),
        "cu_seqlens": torch.tensor([0, 4, 6], device="cpu"),
        "position_embeddings": (angles.cos(), angles.sin()),
    }
    try:
        probe.config = copy.copy(probe.config)
        probe.config._attn_implementation_internal = "eager"
        want = type(module).forward(probe, **given)
        got = widen(forward, dim, lambda *_: True)(probe, **given)
    except UNFIT:
        return 0
    return dim if equals(got, want) else 0
