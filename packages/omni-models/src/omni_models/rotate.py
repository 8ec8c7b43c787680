"""Queries and keys turned by their positions (Su et al., 2021, arXiv:2104.09864).

One kernel for both, each way, on a GPU with Triton; torch's operators elsewhere. Rounded as transformers do it: each
product in the wider dtype of features and tables, and their sum in that of the features.

Dimensions: B rows, S tokens a row, N query heads, K key heads, D head dim, R width of the position tables.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from omni_models.rows import fuses


def rotate(q_BNSD: Tensor, k_BKSD: Tensor, cos: Tensor, sin: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Both, with the first `width` features turned. From kernels they lie in memory as (B, S, heads, D).

    Args:
        q_BNSD: any strides; those of (B, S, N, D) memory cost nothing.
        k_BKSD: the same.
        cos: (1 or B, S, R), of a dtype no narrower than both, of which the first width/2 columns count; no gradient.
        sin: the same.
        width: at most D, even.
    """
    if all(map(fuses, (q_BNSD, k_BKSD, cos, sin))):
        return Rotate.apply(q_BNSD, k_BKSD, cos, sin, width)  # pyright: ignore[reportReturnType]
    return _turn(q_BNSD, cos, sin, width), _turn(k_BKSD, cos, sin, width)


def rotate_problem(inputs: tuple[Tensor, Tensor, Tensor, Tensor], width: int, unsqueeze_dim: int) -> str | None:
    """Why `rotate` cannot turn these queries, keys and tables, in words: it reads tables unchecked, and hands them no
    gradient. Pure."""
    q, k, cos, sin = inputs
    B, _, S, D = q.shape
    fits = (
        (k.shape[0], k.shape[2], k.shape[3]) == (B, S, D)
        and cos.shape == sin.shape
        and cos.shape[:-1] in {(1, S), (B, S)}
        and width <= D
        and unsqueeze_dim in (1, 2)
        and not cos.requires_grad
    )
    if fits:
        return None
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
    return (
        "the fused rope turns queries and keys by constant tables (1 or B, S, up to D); "
        f"got q, k, cos and sin of {shapes} with unsqueeze_dim {unsqueeze_dim}. "
        "Leave rope out of the names of use_kernels."
    )


class Rotate(torch.autograd.Function):
    """The same by kernels. A turn is undone by the opposite one, and so is its gradient."""

    @staticmethod
    def forward(  # noqa: PLR0917 Autograd hands arguments on by position.
        ctx: Any, q_BNSD: Tensor, k_BKSD: Tensor, cos: Tensor, sin: Tensor, width: int
    ) -> Any:
        from omni_models import triton_rotate

        ctx.save_for_backward(cos, sin)
        ctx.width = width
        return triton_rotate.rotate(q_BNSD, k_BKSD, cos, sin, width, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        from omni_models import triton_rotate

        cos, sin = ctx.saved_tensors
        return *triton_rotate.rotate(grads[0], grads[1], cos, sin, ctx.width, back=True), None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, width: int) -> Tensor:
    half = width // 2
    cos, sin = cos[:, None, :, :half], sin[:, None, :, :half]
    left, right, rest = x[..., :half], x[..., half:width], x[..., width:]
    turned = [left * cos - right * sin, right * cos + left * sin]
    return torch.cat([*(part.to(x.dtype) for part in turned), rest], dim=-1)
