"""The kernels of AdamW and of the norm, run by Triton's interpreter on the CPU: what they give, put in a file.

TRITON_INTERPRET=1 python adamw_main.py IN OUT
"""

import sys
from itertools import groupby
from typing import Any

import torch

from omni_parallel import triton_adamw, triton_norm
from omni_parallel.adamw import Held
from omni_parallel.rounding import Throw

# The interpreter runs one after another.
triton_norm._PROGRAMS = 4


def run(cases: list[dict[str, Any]]) -> list[list[torch.Tensor]]:
    """Of each case: parameter, moments, and the squares of gradient and parameter, if wanted; cases of the same
    settings are moved together."""
    found: list[list[torch.Tensor]] = []
    for _, together in groupby(cases, lambda case: (case["settings"], repr(case["scale"]))):
        some = list(together)
        ours = [hold(case) for case in some]
        squares = [
            triton_norm.square_sum([own.grad, own.param]) if case.get("squares", True) else torch.zeros(())
            for own, case in zip(ours, some, strict=True)
        ]
        corrections = torch.stack([case["held"][4] for case in some])
        triton_adamw.update_(ours, corrections, some[0]["scale"], **some[0]["settings"])
        for own, squared in zip(ours, squares, strict=True):
            # The interpreter cuts off digits where a GPU rounds.
            assert own.cast is None or torch.allclose(own.cast.float(), own.param, rtol=2**-7, atol=0)
            found.append([own.param, own.first, own.second, squared])
    return found


def hold(case: dict[str, Any]) -> Held:
    """`case` in memory of its own, which begins at a number that is not the first if it says so."""
    off = case.get("off", 0)
    tensors = [torch.cat([tensor[:1].expand(off), tensor])[off:] for tensor in case["held"][:4]]
    cast = torch.empty_like(tensors[0], dtype=torch.bfloat16) if case["cast"] else None
    return Held(*tensors, Throw(**case["throw"]), cast)


if __name__ == "__main__":
    source, target = sys.argv[1:]
    torch.save(run(torch.load(source)), target)
