"""AdamW (Loshchilov and Hutter, 2017, arXiv:1711.05101) that reads each gradient once, as it is.

torch's fused optimizer wants gradients of the dtype of their parameters and already clipped: on a GPU that is a pass
over all of them to widen, and one to scale. Both happen here while the step reads them. Numbers are those of torch, to
the rounding of fp32.

Moments may be in bf16: they are widened while they are read, and rounded by dice when they are written, see
`rounding.py`. They may be in memory of the host, see `ferry.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Never

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.adamw import adamw

from omni_parallel.casts import drop_cast_, keep_cast
from omni_parallel.ferry import Ferry
from omni_parallel.local import fuses, local
from omni_parallel.rounding import Throw, number_shard, round_moments


class AdamW(torch.optim.AdamW):
    """torch's AdamW, whose gradients and moments may be narrower than their parameters. Its state is torch's, there
    from the start: zeros, and a count of steps."""

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        state_dtype: torch.dtype | None = None,
        ferry: Ferry | None = None,
    ) -> None:
        """With torch's arguments, and:

        Args:
            params: as of torch's optimizers; fp32, if moments are to be narrower.
            lr: learning rate.
            betas: decay of the moments.
            eps: added to the root of the second.
            weight_decay: times `lr`, what is taken from a parameter first.
            state_dtype: of the moments, bf16 for example; None for that of each parameter.
            ferry: what holds them in memory of the host; None to leave them where parameters are.
        """
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        self.ferry = ferry
        for param in (param for group in self.param_groups for param in group["params"]):
            dtype = state_dtype or param.dtype
            assert dtype in (param.dtype, torch.bfloat16) and param.dtype in (dtype, torch.float32)
            zeros_like = torch.zeros_like if ferry is None else ferry.zeros_like
            self.state[param] = {
                "step": torch.zeros((), dtype=torch.float32, device=param.device),
                "exp_avg": zeros_like(param, dtype=dtype),
                "exp_avg_sq": zeros_like(param, dtype=dtype),
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
        params = [param for group in self.param_groups for param in group["params"]]
        numbers = {param: number for number, param in enumerate(params)}
        ferry = self.ferry or Ferry()
        with ferry.sailing():
            for group in self.param_groups:
                params = [param for param in group["params"] if param.grad is not None]
                held = [_hold(param, self.state[param], numbers[param], keep_casts) for param in params]
                fused = [_is_fused(each, ferry) for each in held]
                update_by_kernel_(list(compress(held, fused)), group, scale, ferry)
                if others := [each for each, is_fused in zip(held, fused, strict=True) if not is_fused]:
                    ferry.wait()  # Torch reads what is in memory of the host as it is.
                    ready = [each for each in others if each.is_ready]
                    # The rest one by one: what torch reads of them are copies.
                    for some in (ready, *([each] for each in others if not each.is_ready)):
                        update_by_torch_(some, group, scale)
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Never:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refused: torch's own makes moments as wide as parameters, and where they are.

        Raises:
            ValueError: always, with what to call instead.
        """
        raise ValueError(
            "load_state_dict would make moments as wide as their parameters, and leave none in memory of the host: "
            "keep state_tree(state), and put it back by restore_state(state, tree)."
        )

    def settle(self) -> None:
        """Wait until moments are where the state says: others may then read and write them."""
        if self.ferry is not None:
            self.ferry.wait()


@dataclass(frozen=True, slots=True)
class Held:
    """What belongs to a parameter, of this rank."""

    param: Tensor
    grad: Tensor
    first: Tensor
    second: Tensor
    throw: Throw
    """The count of its steps, and what else moments in bf16 are rounded by."""
    cast: Tensor | None
    """What becomes a cast of the parameter."""

    @property
    def is_ready(self) -> bool:
        """Whether moments are as wide as the parameter, and where it is."""
        own = self.param
        return all((x.dtype, x.device) == (own.dtype, own.device) for x in (self.first, self.second))


def cut(own: Held, most: int) -> Iterator[Held]:
    """Pieces of `own` of at most `most` numbers, (n,), in order. They share its memory."""
    tensors = (own.param, own.grad, own.first, own.second, own.cast)
    for start in range(0, own.param.numel(), most):
        flat: list[Any] = [None if x is None else x.view(-1)[start : start + most] for x in tensors]
        yield Held(*flat[:4], replace(own.throw, start=own.throw.start + start), flat[4])


def update_by_kernel_(held: Sequence[Held], group: Mapping[str, Any], scale: Tensor | None, ferry: Ferry) -> None:
    """Move the parameters of `held` one step; moments that `ferry` holds come to them in pieces."""
    if not held:
        return
    from omni_parallel import triton_adamw

    here, away = ([own for own in held if ferry.holds(own.first) == is_away] for is_away in (False, True))
    held = [*here, *away]
    steps = [own.throw.steps for own in held]
    # In a step that is skipped none is counted.
    counted = torch.ones_like(steps[0]) if scale is None else 1 - scale.isnan().to(steps[0].dtype)
    # A tensor for each: a single one for all would be read by the host, which would wait for the device.
    torch._foreach_add_(steps, [counted] * len(steps))  # pyright: ignore[reportPrivateImportUsage]
    corrections = correct(steps, *group["betas"])
    settings = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
    triton_adamw.update_(here, corrections[: len(here)], scale, **settings)
    for i, own in enumerate(away, len(here)):
        for piece in cut(own, ferry.most):
            with ferry.carry(piece.first, piece.second, piece.param.device) as (first, second):
                there = replace(piece, first=first, second=second)
                triton_adamw.update_([there], corrections[i : i + 1], scale, **settings)
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
    # Themselves, if they are as wide as the parameter and where it is.
    firsts, seconds = [own.first.to(own.param) for own in held], [own.second.to(own.param) for own in held]
    adamw(
        [own.param for own in held],
        grads if scale is None else [grad * scale.to(grad.dtype) for grad in grads],
        firsts,
        seconds,
        [],
        [own.throw.steps for own in held],
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
    for own, first, second in zip(held, firsts, seconds, strict=True):
        narrow = own.first.dtype != own.param.dtype
        moments = round_moments(first, second, own.throw) if narrow else (first, second)
        for there, here in zip((own.first, own.second), moments, strict=True):
            if there is not here:
                there.copy_(here)
        if own.cast is not None:
            own.cast.copy_(own.param)


def _is_fused(held: Held, ferry: Ferry) -> bool:
    """Whether the kernel takes `held`, whose moments may come by `ferry`."""
    moments = (held.first, held.second)
    dtypes = {x.dtype for x in moments}
    fits = held.param.dtype == torch.float32 and dtypes in ({torch.float32}, {torch.bfloat16})
    here = () if all(map(ferry.holds, moments)) else moments
    return fits and fuses(held.param, held.grad, held.throw.steps, *here)


def _hold(param: nn.Parameter, state: Mapping[str, Tensor], number: int, keep_casts: bool) -> Held:
    assert param.grad is not None
    cast = None
    if keep_casts and param.grad.dtype.itemsize < param.dtype.itemsize:
        cast = local(keep_cast(param, param.grad.dtype))
    else:
        drop_cast_(param)  # It would be a step behind.
    tensors = (param, param.grad, state["exp_avg"], state["exp_avg_sq"])
    return Held(*map(local, tensors), Throw(state["step"], number, number_shard(param)), cast)
