"""Linear layers of blocks that multiply 8-bit floats.

Inputs and weights are in e4m3, which has the more digits, and gradients in e5m2, which has the wider range
(Micikevicius et al., 2022, arXiv:2209.05433): those of one tensor are often far apart, token by token, and what falls
below the range of e4m3, 18 powers of two, would be lost. A tensor has one scale, made anew each time from its largest
magnitude, which becomes the largest of the format (dynamic tensorwise scaling); no step remembers another. Products add
up in the accumulators of the hardware, narrower than fp32: in the forward pass all the way, which is faster, and for
gradients only over short stretches. What comes out is in the dtype that came in.

    y = x w^T + b       x (T, K) by w (N, K)
    dx = dy w           dy (T, N) by w^T (K, N)
    dw = dy^T x         dy^T (N, T) by x^T (K, T)

8-bit products want both sides in rows along the dim that is summed over, so each of x, w and dy is needed as it is and
transposed. The backward pass holds x^T in 8 bits, and w, which is quantized again: sharding frees and gathers it.

A tensor that has a nan or an infinity makes everything nan that it is multiplied into, so that the step is skipped.

Dimensions: T tokens, K features in, N features out, P = T up to the next multiple of 16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from omni_parallel.local import fuses
from omni_parallel.plan import ParallelPlan

M = TypeVar("M", bound=nn.Module)
VALUES: Final = torch.float8_e4m3fn
"""The format of inputs and weights."""
GRADIENTS: Final = torch.float8_e5m2
"""The format of gradients."""
ALIGNED: Final = 16
"""Features and summed-over tokens come in multiples of this, which 8-bit products want."""
LEAST: Final = 2.0**-100
"""The largest magnitude of a tensor counts as at least this, so that its scale stays finite."""
CAPABILITY: Final = (8, 9)
"""Of GPUs, the first that multiplies 8-bit floats."""
_ROUTERS: Final = frozenset({"router", "gate"})
"""What modules are called that choose experts: a choice turns on differences that 8 bits do not hold."""


def apply_fp8(model: M, plan: ParallelPlan) -> M:
    """The same model, whose linear layers named by `find_linears` multiply 8-bit floats. Donates `model`.

    Parameters, their names and dtypes stay. A tensor that several layers of a block take one after another, as queries,
    keys and values do, is quantized once. Before `recompute_blocks` and `shard_fsdp`; on any device, also "meta".

    Raises:
        ValueError: if no linear layer fits, or blocks are to be compiled.
    """
    names = find_linears(model, plan)
    problems = [] if names else [_nothing_fits(model, plan)]
    if plan.compile:
        problems.append(
            "apply_fp8 with compiled blocks: layers that share an input know it by being the same tensor, which a "
            "compiler does not see. Plan without compile, or leave linear layers as they are."
        )
    if problems:
        raise ValueError("\n".join(problems))
    for block in plan.blocks:
        memo = Memo()
        inside = [name for name in names if name.startswith(f"{block}.")]
        for name in inside:
            module = model.get_submodule(name)
            module.forward = partial(_forward, module, memo)
        if inside:
            module = model.get_submodule(block)
            module.forward = partial(_forget_after, module.forward, memo)
    return model


def find_linears(model: nn.Module, plan: ParallelPlan) -> tuple[str, ...]:
    """Names of the linear layers inside the blocks of `plan` that can multiply 8-bit floats. Pure.

    Left out are those with features that are no multiple of 16, routers of experts, spread experts, and what is no
    plain `nn.Linear` or has a forward of its own already.
    """
    blocks = tuple(f"{name}." for name in plan.blocks)
    experts = tuple(f"{name}." for name in plan.experts)
    return tuple(
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and name.startswith(blocks)
        and not name.startswith(experts)
        and not _ROUTERS & set(name.split("."))
        and module.in_features % ALIGNED == module.out_features % ALIGNED == 0
        and "forward" not in vars(module)
    )


def fp8_problems(
    device_type: str, capability: tuple[int, int] | None, model: nn.Module, plan: ParallelPlan
) -> list[str]:
    """Why 8-bit floats gain nothing or cannot be had there, in words; empty if they can. Pure.

    Args:
        device_type: where the model will run.
        capability: of the GPU, major and minor; None if there is none.
        model: of which layers fit.
        plan: names its blocks.
    """
    problems = []
    if device_type != "cuda" or capability is None:
        problems.append(f"linear=fp8 multiplies 8-bit floats on GPUs, not on {device_type}: use linear=plain.")
    elif capability < CAPABILITY:
        problems.append(
            f"linear=fp8 needs a GPU of compute capability {_dotted(CAPABILITY)} or more (Ada, Hopper, Blackwell), and "
            f"this one has {_dotted(capability)}: use linear=plain."
        )
    if not find_linears(model, plan):
        problems.append(f"linear=fp8: {_nothing_fits(model, plan)} Use linear=plain.")
    return problems


@dataclass(frozen=True, slots=True)
class Quantized:
    """A tensor in 8 bits, in the forms that were asked for."""

    rows_TK: Tensor | None
    turned_KP: Tensor | None
    """Transposed, with zeros for tokens that are not there."""
    step: Tensor
    """What 1 in 8 bits stands for, the inverse of the scale: fp32 scalar."""


def quantize(
    x_TK: Tensor, dtype: torch.dtype, *, rows: bool = True, turned: bool = False, step: Tensor | None = None
) -> Quantized:
    """`x_TK` in 8 bits. On a GPU with Triton it is read twice, once for its scale and once for all that is asked for.

    Args:
        x_TK: not empty; bf16, fp16 or fp32.
        dtype: `VALUES` or `GRADIENTS`.
        rows: whether it is wanted as it is.
        turned: whether it is wanted transposed.
        step: that of an earlier quantization of the same numbers; None to find it.
    """
    x_TK = x_TK.detach().contiguous()
    if fuses(x_TK):
        from omni_parallel import triton_fp8

        return Quantized(*triton_fp8.quantize(x_TK, dtype, rows, turned, step))
    most = torch.finfo(dtype).max
    step = find_step(x_TK.abs().amax().float(), most) if step is None else step
    # What is beyond the range would become nan, or an infinity.
    scaled_TK = (x_TK.float() * step.reciprocal()).clamp_(-most, most)
    turned_KP = F.pad(scaled_TK, (0, 0, 0, -len(x_TK) % ALIGNED)).t().contiguous().to(dtype) if turned else None
    return Quantized(scaled_TK.to(dtype) if rows else None, turned_KP, step)


def find_step(largest: Tensor, most: float) -> Tensor:
    """What 1 in 8 bits stands for, so that `most` stands for `largest`: nan if that is not finite, 1 if it is zero."""
    step = torch.where(largest == 0, 1.0, largest.clamp(min=LEAST) / most)
    return torch.where(largest.isfinite(), step, torch.nan)


class Memo:
    """The tensor that was quantized last, and what came of it, until its block is done or the tensor is no more.

    It is known by being the same object, alive, and not changed since.
    """

    def __init__(self) -> None:
        self.held: tuple[Callable[[], Tensor | None], int, Quantized] | None = None

    def quantize(self, x: Tensor, *, turned: bool) -> Quantized:
        """`x`, whose last dim is of features, in `VALUES`, as rows of tokens and if asked for `turned`."""
        if x.is_inference():  # It does not count its changes.
            return quantize(x.flatten(0, -2), VALUES, turned=turned)
        if self.held:
            source, version, found = self.held
            if source() is x and version == x._version and (found.turned_KP is not None or not turned):
                return found
        self.held = None  # Gone before another is made.
        found = quantize(x.flatten(0, -2), VALUES, turned=turned)
        self.held = ref(x, self._forget), x._version, found
        return found

    def clear(self) -> None:
        """Hold nothing."""
        self.held = None

    def _forget(self, gone: Callable[[], Tensor | None]) -> None:
        # What runs in parts in the backward pass of a block is not inside its forward, after which this is cleared.
        if self.held and self.held[0] is gone:
            self.held = None


def _forward(module: nn.Linear, memo: Memo, x: Tensor) -> Tensor:
    weight_NK, bias_N = module.weight, module.bias
    if x.ndim < 2 or not x.numel():
        return F.linear(x, weight_NK, bias_N)  # There is nothing to gain.
    x8 = memo.quantize(x, turned=torch.is_grad_enabled() and weight_NK.requires_grad)
    y_TN: Any = _Linear.apply(x.flatten(0, -2), weight_NK, bias_N, x8)
    return y_TN.unflatten(0, x.shape[:-1])


def _forget_after(forward: Callable[..., Any], memo: Memo, *args: Any, **kwargs: Any) -> Any:
    """What `forward` gives; `memo` is empty then, also where a recomputation breaks off."""
    try:
        return forward(*args, **kwargs)
    finally:
        memo.clear()


class _Linear(torch.autograd.Function):
    """x_TK w_NK^T + b_N, of which x comes in 8 bits too."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, x8: Quantized) -> Tensor:
        w8 = quantize(weight_NK, VALUES)
        ctx.save_for_backward(x8.turned_KP, x8.step, weight_NK, w8.step)
        assert x8.rows_TK is not None and w8.rows_TK is not None
        return multiply(x8.rows_TK, w8.rows_TK, x8.step, w8.step, x_TK.dtype, bias=bias_N, fast=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x8_KP, x_step, weight_NK, w_step = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        d_y_TN, d_x_TK, d_weight_NK = grads[0], None, None
        d_y8 = quantize(d_y_TN, GRADIENTS, rows=wants_x, turned=wants_weight)
        if wants_x:
            w8 = quantize(weight_NK, VALUES, rows=False, turned=True, step=w_step)
            assert d_y8.rows_TK is not None and w8.turned_KP is not None
            d_x_TK = multiply(d_y8.rows_TK, w8.turned_KP, d_y8.step, w_step, d_y_TN.dtype)
        if wants_weight:
            assert d_y8.turned_KP is not None
            d_weight_NK = multiply(d_y8.turned_KP, x8_KP, d_y8.step, x_step, weight_NK.dtype)
        return d_x_TK, d_weight_NK, d_y_TN.sum(0) if wants_bias else None, None


def multiply(
    a_MK: Tensor,
    b_NK: Tensor,
    a_step: Tensor,
    b_step: Tensor,
    dtype: torch.dtype,
    *,
    bias: Tensor | None = None,
    fast: bool = False,
) -> Tensor:
    """a b^T in `dtype`, of 8-bit floats, each times its step, with `bias` added; `fast` adds up in fewer digits."""
    # Private to torch, whose public `scaled_mm` has no version for CPUs in torch 2.11. It adds no bias in fp32.
    inside = bias if dtype != torch.float32 else None
    steps = {"scale_a": a_step, "scale_b": b_step}
    out_MN = torch._scaled_mm(a_MK, b_NK.t(), **steps, bias=inside, out_dtype=dtype, use_fast_accum=fast)
    return out_MN if bias is inside else out_MN + bias


def _nothing_fits(model: nn.Module, plan: ParallelPlan) -> str:
    return (
        f"in the {len(plan.blocks)} blocks of {type(model).__name__} there is no plain linear layer whose features in "
        f"and out are multiples of {ALIGNED}."
    )


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
