"""AdamW (Loshchilov and Hutter, 2017, arXiv:1711.05101) that reads each gradient once, as it is.

torch's fused optimizer wants gradients of the dtype of their parameters and already clipped: on a GPU that is a pass
over all of them to widen, and one to scale. Both happen here while the step reads them. Numbers are those of torch, to
the rounding of fp32.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.adamw import adamw

from omni_parallel.casts import drop_cast_, keep_cast
from omni_parallel.local import fuses, local


class AdamW(torch.optim.AdamW):
    """torch's AdamW, whose gradients may be narrower than their parameters. Its state is torch's, there from the start:
    zeros in the dtype of the parameter, and a count of steps."""

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        for param in (param for group in self.param_groups for param in group["params"]):
            self.state[param] = {
                "step": torch.zeros((), dtype=torch.float32, device=param.device),
                "exp_avg": torch.zeros_like(param),
                "exp_avg_sq": torch.zeros_like(param),
            }

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Callable[[], float] | None = None, *, scale: Tensor | None = None, keep_casts: bool = False
    ) -> float | None:
        """One step, in place.

        Args:
            closure: as of torch's optimizers.
            scale: what gradients are multiplied by first (fp32 scalar, on the device); None for one. If it is nan,
                nothing is changed, without anybody waiting to know.
            keep_casts: see `omni_parallel.update`.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            held = [_hold(param, self.state[param], keep_casts) for param in group["params"] if param.grad is not None]
            update_by_kernel_([each for each in held if _is_fused(each)], group, scale)
            update_by_torch_([each for each in held if not _is_fused(each)], group, scale)
        return loss


@dataclass(frozen=True, slots=True)
class Held:
    """What belongs to a parameter, of this rank."""

    param: Tensor
    grad: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor
    cast: Tensor | None
    """What becomes a cast of the parameter."""


def update_by_kernel_(held: Sequence[Held], group: Mapping[str, Any], scale: Tensor | None) -> None:
    """Move the parameters of `held` one step."""
    if not held:
        return
    from omni_parallel import triton_adamw

    steps = [own.steps for own in held]
    # In a step that is skipped none is counted.
    counted = torch.ones_like(steps[0]) if scale is None else 1 - scale.isnan().to(steps[0].dtype)
    # A tensor for each: a single one for all would be read by the host, which would wait for the device.
    torch._foreach_add_(steps, [counted] * len(steps))  # pyright: ignore[reportPrivateImportUsage]
    corrections = correct(steps, *group["betas"])
    settings = (group["lr"], *group["betas"], group["eps"], group["weight_decay"])
    for own, correction in zip(held, corrections, strict=True):
        triton_adamw.update_(own.param, own.grad, own.first, own.second, correction, own.cast, scale, *settings)
    # A kernel changes memory unseen by torch, which would take what a backward pass has kept of it for what it was.
    changed = [(own.param, own.first, own.second, own.cast) for own in held]
    increment_version([tensor for tensors in changed for tensor in tensors if tensor is not None])


def correct(steps: Sequence[Tensor], beta1: float, beta2: float) -> Tensor:
    """What the moments of each parameter are divided by after so many steps: (N, 2) fp32, of the second the root.

    In fp64: in fp32 nothing would be left of 1 - beta**step for a beta near one.
    """
    steps_N = torch.stack(list(steps)).double()
    return torch.stack([1 - beta1**steps_N, (1 - beta2**steps_N).sqrt()], dim=1).float()


def update_by_torch_(held: Sequence[Held], group: Mapping[str, Any], scale: Tensor | None) -> None:
    """Move the parameters of `held` one step."""
    if not held:
        return
    grads = [own.grad.to(own.param.dtype) for own in held]
    adamw(
        [own.param for own in held],
        grads if scale is None else [grad * scale.to(grad.dtype) for grad in grads],
        [own.first for own in held],
        [own.second for own in held],
        [],
        [own.steps for own in held],
        fused=True,
        # What torch calls the sign that a scaled loss has overflown: 1 to change nothing.
        found_inf=None if scale is None else scale.isnan().float(),
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
    for own in held:
        if own.cast is not None:
            own.cast.copy_(own.param)


def _is_fused(held: Held) -> bool:
    wide = all(tensor.dtype == torch.float32 for tensor in (held.param, held.first, held.second))
    return wide and fuses(held.param, held.grad, held.first, held.second, held.steps)


def _hold(param: nn.Parameter, state: Mapping[str, Tensor], keep_casts: bool) -> Held:
    assert param.grad is not None
    cast = None
    if keep_casts and param.grad.dtype.itemsize < param.dtype.itemsize:
        cast = local(keep_cast(param, param.grad.dtype))
    else:
        drop_cast_(param)  # It would be a step behind.
    tensors = (param, param.grad, state["exp_avg"], state["exp_avg_sq"])
    return Held(*map(local, tensors), state["step"], cast)
