"""The kernels of AdamW and of the norm, run by Triton's interpreter on the CPU: what they give, put in a file.

TRITON_INTERPRET=1 python adamw_main.py IN OUT
"""

import sys
from typing import Any

import torch

from omni_parallel import triton_adamw, triton_norm
from omni_parallel.rounding import Throw


def run(case: dict[str, Any]) -> list[torch.Tensor]:
    held = [tensor.clone() for tensor in case["held"]]
    cast = torch.empty_like(held[0], dtype=torch.bfloat16) if case["cast"] else None
    triton_adamw.update_(*held, cast, case["scale"], Throw(**case["throw"]), **case["settings"])
    # The interpreter cuts off digits where a GPU rounds.
    assert cast is None or torch.allclose(cast.float(), held[0], rtol=2**-7, atol=0)
    return [held[0], held[2], held[3], triton_norm.square_sum([case["held"][1], case["held"][0]])]


if __name__ == "__main__":
    source, target = sys.argv[1:]
    torch.save([run(case) for case in torch.load(source)], target)
