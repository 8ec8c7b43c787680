"""The RMS norm (Zhang and Sennrich, 2019, arXiv:1910.07467) in the two ways in which models round it.

Two kernels on a GPU with Triton, which keep one number a row for the backward pass; torch's operators elsewhere.

Dimensions: R rows, H features.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from omni_models.rows import fuses


def rms_norm(x: Tensor, weight_H: Tensor, eps: float, offset: float, casting: str) -> Tensor:
    """x * rsqrt(mean(x^2) + eps) * (offset + weight), the sum in fp32; kernels give the dtype of x.

    Args:
        x: (..., H).
        weight_H: of any dtype with casting "gemma", else no wider than x.
        eps: added to the mean.
        offset: 0 or 1.
        casting: "llama" multiplies after the cast to the dtype of x, "gemma" before it.
    """
    if fuses(x) and fuses(weight_H):
        return RMSNorm.apply(x, weight_H, eps, offset, casting == "llama")  # pyright: ignore[reportReturnType]
    return rms_norm_by_formula(x, weight_H, eps, offset, casting)


def rms_norm_by_formula(x: Tensor, weight_H: Tensor, eps: float, offset: float, casting: str) -> Tensor:
    """The same by torch's operators."""
    wide = torch.promote_types(x.dtype, torch.float32)
    normed = x.to(wide) * torch.rsqrt(x.to(wide).pow(2).mean(-1, keepdim=True) + eps)
    if casting == "llama":
        return normed.to(x.dtype) * (offset + weight_H)
    return (normed * (offset + weight_H.to(wide))).to(x.dtype)


class RMSNorm(torch.autograd.Function):
    """(x, weight, eps, offset, whether cast as llama) -> the norm, by kernels."""

    @staticmethod
    def forward(  # noqa: PLR0917 Autograd hands arguments on by position.
        ctx: Any, x: Tensor, weight_H: Tensor, eps: float, offset: float, narrow: bool
    ) -> Tensor:
        from omni_models import triton_rms_norm

        weight_H = weight_H.contiguous()
        out_RH, rstd_R = triton_rms_norm.rms_norm(_rows(x), weight_H, eps, offset, narrow=narrow)
        ctx.save_for_backward(x, weight_H, rstd_R)
        ctx.options = {"offset": offset, "narrow": narrow, "weigh": ctx.needs_input_grad[1]}
        return out_RH.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        from omni_models import triton_rms_norm

        x, weight_H, rstd_R = ctx.saved_tensors
        d_x_RH, d_weight_H = triton_rms_norm.grad_rms_norm(_rows(grads[0]), _rows(x), weight_H, rstd_R, **ctx.options)
        return d_x_RH.view(x.shape), d_weight_H, None, None, None


def _rows(x: Tensor) -> Tensor:
    """(R, H) with neighbouring features: a view wherever its strides allow it."""
    x_RH = x.reshape(-1, x.shape[-1])
    return x_RH if x_RH.stride(1) == 1 else x_RH.contiguous()
