"""A rank alone: nothing is gathered and nothing summed, so what is left of sharding is the dtype of compute.

FSDP2 takes as long for one rank as for many, for each block and each parameter: of small models more time of the host
than all else. Here calls see casts of the parameters, and gradients come back in the dtype in which they were made.
Outside of forward and backward passes, and between the two, a model has its parameters and nothing else.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any, Final, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_leaves, tree_map_only

from omni_parallel.casts import kept_cast

M = TypeVar("M", bound=nn.Module)
TOGETHER: Final = 16
"""Parameters whose gradients come back together: fewer calls, while of a large model few gradients wait for others."""
_ALONE: Final = "omni_alone"
"""The attribute of a model that holds its `Alone`."""


class Slot(NamedTuple):
    """A place for a parameter, and what is there."""

    module: nn.Module
    name: str
    param: nn.Parameter


class Alone:
    """The parameters of a model, and their casts while it computes."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        # Modules that compute alone already show what is in them themselves, in a dtype of their own.
        apart = {part for module in model.modules() if _ALONE in vars(module) for part in module.modules()}
        own = (module for module in model.modules() if module not in apart)
        self.places = [(module, name) for module in own for name in module._parameters]
        self.shown: list[Slot] = []
        """Whose casts are in their places."""
        self.casts: dict[nn.Parameter, Tensor] = {}
        """Those of the last call that is to be differentiated, until it is."""

    def make(self) -> dict[nn.Parameter, Tensor]:
        """Casts of all parameters of another dtype; tied ones have one. None may be shown."""
        params = (module._parameters[name] for module, name in self.places)
        found = [param for param in dict.fromkeys(params) if param is not None]
        other = [param for param in found if param.dtype != self.dtype and param.is_floating_point()]
        parts = [other[start : start + TOGETHER] for start in range(0, len(other), TOGETHER)]
        casts = (cast(some, self.dtype) for some in parts)
        return dict(zip(other, chain.from_iterable(casts), strict=True))

    def show(self, casts: dict[nn.Parameter, Tensor]) -> None:
        """Put each cast in the place of its parameter."""
        for module, name in self.places:
            param = module._parameters[name]
            if param is not None and (there := casts.get(param)) is not None:
                self.shown.append(Slot(module, name, param))
                module._parameters[name] = there  # pyright: ignore[reportArgumentType]

    def hide(self) -> None:
        """Put each parameter back."""
        for module, name, param in self.shown:
            module._parameters[name] = param
        self.shown.clear()

    def show_in_backward(self, grad: Tensor) -> None:
        """Show casts until the backward pass that is under way has ended: what it runs again sees what ran before."""
        if not self.shown:
            if not self.casts:  # That pass is not the first since the last call.
                with torch.enable_grad():
                    self.casts = self.make()
            self.show(self.casts)
        # As FSDP2 does it: torch has no public name for it.
        torch.autograd.Variable._execution_engine.queue_callback(self.forget)

    def forget(self) -> None:
        """Put each parameter back, and hold no cast."""
        self.hide()
        self.casts = {}


def compute_alone(model: M, dtype: torch.dtype) -> M:
    """The same model, which computes in `dtype`. Donates `model`.

    While it is called, and in the backward pass from what it gave, its parameters look as if they were of `dtype`;
    casts that an update has kept are taken as they are. Inputs are cast, too. A gradient stays in `dtype`; where a
    later backward pass brings a second, they add up in the dtype of the parameter.
    """
    alone = Alone(model, dtype)
    setattr(model, _ALONE, alone)
    model.register_forward_pre_hook(partial(_begin, alone), with_kwargs=True)
    model.register_forward_hook(partial(_end, alone), always_call=True)
    return model


def forget_casts_(module: nn.Module) -> None:
    """Put the parameters of `module` back where a backward pass that failed has left casts, if it computes alone."""
    if (alone := vars(module).get(_ALONE)) is not None:
        alone.forget()


def _begin(alone: Alone, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    alone.hide()
    casts = alone.make()
    if torch.is_grad_enabled():
        alone.casts = casts
    alone.show(casts)

    def to_dtype(x: Tensor) -> Tensor:
        return x.to(alone.dtype) if x.is_floating_point() else x

    return tree_map_only(Tensor, to_dtype, (args, kwargs))


def _end(alone: Alone, module: nn.Module, args: object, output: object) -> None:
    alone.hide()
    for x in tree_leaves(output):
        if isinstance(x, Tensor) and x.requires_grad:
            x.register_hook(alone.show_in_backward)


def cast(params: Sequence[nn.Parameter], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """`params` in `dtype`, in which their gradients come back: together, once all that there will be are made."""
    trained = [param for param in params if param.requires_grad]
    if not trained or not torch.is_grad_enabled():
        return tuple(_cast(param, dtype) for param in params)
    casts = dict(zip(trained, _Cast.apply(dtype, *trained), strict=True))
    return tuple(casts[param] if param in casts else _cast(param, dtype) for param in params)


@torch.no_grad()
def _cast(param: nn.Parameter, dtype: torch.dtype) -> Tensor:
    kept = kept_cast(param)
    return param.to(dtype) if kept is None or kept.dtype != dtype else kept.detach()


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *params: nn.Parameter) -> tuple[Tensor, ...]:
        ctx.params = params
        ctx.set_materialize_grads(False)
        for param in params:
            param.grad_dtype = None  # Any will do.
        return tuple(_cast(param, dtype) for param in params)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        for param, grad in zip(ctx.params, grads, strict=True):
            before = param.grad
            if grad is not None and before is not None and before.dtype != param.dtype:
                param.grad = before.to(param.dtype)
        return None, *grads
