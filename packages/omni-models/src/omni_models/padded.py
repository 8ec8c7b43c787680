"""A gated MLP whose inner width suits the matrix units of a GPU: its weights are padded by zeros for the call.

Of 16-bit matrices whose rows are no multiple of 16 bytes cuBLAS reads two values at a time. Qwen2.5-VL's tower has an
inner width of 3,420, no multiple of 8: on an H200 its products ran at 260 TFLOP/s, and others at 600. Zeros stay zeros
on the way, act(0) * 0 and 0 * weight, so nothing else changes; parameters, and so checkpoints, keep their shape, and
autograd cuts the padding off their gradients. What a call pads is kept for its backward: a block that is not computed
again keeps three weights more until then, whole ones where they are sharded.

Dimensions: H features, I features between the projections, P features padded to.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni_models.rows import fuses

_VECTOR, _TILE = 8, 64
"""Values of 16 bits that are read at once, and that a step of a product takes."""
# Torch has no public way to ask for a module's hooks.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def pad_width(inner: int) -> int:
    """The width to compute with: `inner` itself if its rows are read whole, otherwise the next multiple of 64.

    >>> pad_width(3420), pad_width(3424)
    (3456, 3424)
    """
    return inner if inner % _VECTOR == 0 else -(-inner // _TILE) * _TILE


def pads(x: Tensor, *linears: nn.Module) -> bool:
    """Whether padding would pay for such a tensor, and nothing would miss that `linears` are called as modules.

    Adapters, products in 8 bits and sharding by features have modules or tensors of their own; hooks want to be called.
    """
    return fuses(x) and x.dtype != torch.float32 and all(map(is_plain, linears))


def is_plain(linear: nn.Module) -> bool:
    """Whether it is torch's own Linear, with plain parameters, the forward of its class and no hooks."""
    return (
        type(linear) is nn.Linear
        and "forward" not in vars(linear)
        and not any(getattr(linear, name) for name in _HOOKS)
        and all(type(param) in (Tensor, nn.Parameter) for param in (linear.weight, linear.bias) if param is not None)
    )


def gated_mlp(
    x: Tensor, linears: tuple[nn.Linear, nn.Linear, nn.Linear], act_mul: Callable[[Tensor, Tensor], Tensor], width: int
) -> Tensor:
    """down(act_mul(gate(x), up(x))) with `width` features between the projections.

    Args:
        x: (..., H).
        linears: gate, up and down, with or without biases.
        act_mul: (gate, up) -> act(gate) * up, which makes zero of two zeros.
        width: P, at least I.
    """
    gate, up, down = linears
    more = width - gate.weight.shape[0]

    def widen(linear: nn.Linear) -> Tensor:
        bias_P = None if linear.bias is None else F.pad(linear.bias, (0, more))
        return F.linear(x, F.pad(linear.weight, (0, 0, 0, more)), bias_P)

    return F.linear(act_mul(widen(gate), widen(up)), F.pad(down.weight, (0, more)), down.bias)
