"""What tests multiply 8-bit floats with on a CPU is what torch does."""

import pytest
import torch
from quick_products import quick_products
from torch import Tensor

from omni_parallel.fp8 import GRADIENTS, VALUES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_products_on_a_cpu_are_those_of_torch(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    a_MK, b_NK, bias_N = (torch.randn(size, generator=random) for size in ((32, 48), (64, 48), (64,)))
    how = {"scale_a": torch.tensor(0.3), "scale_b": torch.tensor(2.0), "out_dtype": dtype}
    how |= {} if dtype == torch.float32 else {"bias": bias_N.to(dtype)}

    def multiply() -> Tensor:
        return torch._scaled_mm(a_MK.to(VALUES), b_NK.to(GRADIENTS).t(), **how)

    own = multiply()
    with quick_products():
        torch.testing.assert_close(multiply(), own)
    assert torch.equal(multiply(), own)
