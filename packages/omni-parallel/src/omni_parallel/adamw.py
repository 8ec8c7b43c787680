"""AdamW (Loshchilov and Hutter, 2017, arXiv:1711.05101) that reads each gradient once, as it is.

torch's fused optimizer wants gradients of the dtype of their parameters and already clipped: on a GPU that is a pass
over all of them to widen, and one to scale. Both happen here while the step reads them. Numbers are those of torch, to
the rounding of fp32.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw


class AdamW(torch.optim.AdamW):
    """torch's AdamW, whose gradients may be narrower than their parameters. State and settings are torch's."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, scale: Tensor | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step, in place.

        Args:
            closure: as of torch's optimizers.
            scale: what gradients are multiplied by first (fp32 scalar, on the device); None for one.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            used = [param for param in group["params"] if param.grad is not None]
            entries = [self.state[param] for param in used]
            locals_ = zip(
                map(_local, used),
                (_local(param.grad) for param in used),
                (_local(entry["exp_avg"]) for entry in entries),
                (_local(entry["exp_avg_sq"]) for entry in entries),
                (entry["step"] for entry in entries),
                strict=True,
            )
            update_(list(locals_), group, scale)
        return loss


Held = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""A parameter, its gradient, both moments and the number of steps, of this rank."""


def update_(held: list[Held], group: dict[str, Any], scale: Tensor | None) -> None:
    """Move the parameters of `held` one step, by the settings of `group`."""
    fused = [each for each in held if _is_wide(each) and fuses(*each)]
    rest = [each for each in held if not (_is_wide(each) and fuses(*each))]
    if fused:
        from omni_parallel import triton_adamw

        torch._foreach_add_([steps for *_, steps in fused], 1)  # pyright: ignore[reportPrivateImportUsage]
        for each in fused:
            triton_adamw.update_(*each, scale, group["lr"], *group["betas"], group["eps"], group["weight_decay"])
        # A kernel changes memory unseen by torch, which would take what a backward pass has kept of it for what it was.
        increment_version([tensor for param, _, *moments, _ in fused for tensor in (param, *moments)])
    if rest:
        params, grads, firsts, seconds, steps = map(list, zip(*rest, strict=True))
        grads = [grad.to(param.dtype) for param, grad in zip(params, grads, strict=True)]
        adamw(
            params,
            grads if scale is None else [grad * scale.to(grad.dtype) for grad in grads],
            firsts,
            seconds,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def fuses(*tensors: Tensor) -> bool:
    """Whether kernels of Triton run on such tensors."""
    return all(x.is_cuda and x.is_contiguous() and x.is_floating_point() for x in tensors) and _has_triton()


def _is_wide(held: Held) -> bool:
    param, _, *others = held
    return all(tensor.dtype == torch.float32 for tensor in (param, *others))


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
