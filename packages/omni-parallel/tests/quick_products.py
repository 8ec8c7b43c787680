"""Products of 8-bit floats on a CPU in no time: that of torch computes one number after another."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def quick_products() -> Iterator[None]:
    """While open, `torch._scaled_mm` on a CPU adds up in fp32, which holds each product exactly. Effect: on torch."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_scaled_mm", _multiply, "CPU", allow_override=True)
    try:
        yield
    finally:
        library._destroy()


def _multiply(
    a_MK: Tensor,
    b_KN: Tensor,
    a_step: Tensor,
    b_step: Tensor,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> Tensor:
    out_MN = (a_MK.float() @ b_KN.float()) * (a_step * b_step)
    return (out_MN if bias is None else out_MN + bias).to(out_dtype)
