"""The kernels of 8-bit floats, run by Triton's interpreter on the CPU: what they give, put in a file.

TRITON_INTERPRET=1 python fp8_main.py IN OUT
"""

import sys
from typing import Any

import torch

from omni_parallel import triton_fp8


def run(case: dict[str, Any]) -> list[torch.Tensor | None]:
    return list(triton_fp8.quantize(case["x"], case["dtype"], case["rows"], case["turned"], case["step"]))


if __name__ == "__main__":
    source, target = sys.argv[1:]
    torch.save([run(case) for case in torch.load(source)], target)
