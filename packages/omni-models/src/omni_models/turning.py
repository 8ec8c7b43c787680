"""The forward of an attention that turns its queries and keys by a kernel, and in a tower has heads that suit others.

Dimensions: B rows, S tokens a row, N query heads, K key heads, D head dim, R width of the position tables.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from omni_models.proofs_rope import Rope
from omni_models.rotate import rotate, rotate_problem
from omni_models.wide_heads import prove_heads, widen


def bind_rope(forward: Callable[..., Any], fit: Rope, rope: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """The forward of an attention of which `fit` is proven, turning by `rope`."""
    assert isinstance(forward, FunctionType)
    bound = rebind(forward, fit.name, fuse_rope(fit, rope))
    return widen(bound, fit.dim) if fit.dim else bound


def widen_rope(module: nn.Module, fit: Rope) -> Rope:
    """The same, with the dim of heads to pad if it is proven that `module` may have wider ones."""
    if not fit.flat:
        return fit
    turning = bind_rope(type(module).forward, fit, rotate)
    return replace(fit, dim=prove_heads(module, turning))


def fuse_rope(fit: Rope, rope: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A function of the signature of `fit.rotate`, for tensors on any device that `rope` runs on."""
    signature = inspect.signature(fit.rotate)

    def rotate(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        q, k, cos, sin = (given.arguments[name] for name in ("q", "k", "cos", "sin"))
        alone = fit.flat and q.ndim == 3
        if alone:
            q, k, cos, sin = (x[None] for x in (q, k, cos, sin))
        elif fit.flat and cos.ndim == sin.ndim == 2:
            cos, sin = cos[None], sin[None]
        tokens_first = fit.flat or given.arguments.get("unsqueeze_dim", 1) == 2
        if tokens_first:
            q, k = q.transpose(1, 2), k.transpose(1, 2)
        width = 2 * cos.shape[-1] if fit.half else cos.shape[-1]
        if problem := rotate_problem((q, k, cos, sin), width, given.arguments.get("unsqueeze_dim", 1)):
            raise ValueError(problem)
        if fit.wide:
            cos, sin = cos.float(), sin.float()
        else:
            dtype = torch.promote_types(q.dtype, cos.dtype)
            q, k, cos, sin = (x.to(dtype) for x in (q, k, cos, sin))
        q, k = rope(q, k, cos, sin, width)
        if tokens_first:
            q, k = q.transpose(1, 2), k.transpose(1, 2)
        return (q[0], k[0]) if alone else (q, k)

    return rotate


def rebind(forward: FunctionType, name: str, rotate: Callable[..., Any]) -> FunctionType:
    """The same code, in which `name` means `rotate`.

    The name is private to transformers, and no argument or registry reaches the function behind it; a copy of the
    code's mapping of names does, and leaves the modeling file and other models alone.
    """
    names = {**forward.__globals__, name: rotate}
    rebound = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    rebound.__kwdefaults__ = forward.__kwdefaults__
    return rebound
