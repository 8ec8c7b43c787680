"""The update by kernels, of moments that are here and of moments that come in pieces, in Triton's interpreter.

TRITON_INTERPRET=1 python ferry_main.py IN OUT
"""

import sys
from typing import Any

import torch
from torch import Tensor

from omni_parallel.adamw import Held, update_by_kernel_
from omni_parallel.ferry import Ferry
from omni_parallel.rounding import Throw


def run(case: dict[str, Any]) -> list[Tensor]:
    """Parameters, moments, counts and casts after an update of all tensors of `case`."""
    ferry = Ferry(smallest=1, most=case["most"])
    held: list[Held] = []
    for number, (param, grad, first, second) in enumerate(case["tensors"]):
        zeros_like = ferry.zeros_like if case["away"] else torch.zeros_like
        moments = [zeros_like(x, dtype=x.dtype).copy_(x) for x in (first, second)]
        cast = torch.zeros_like(param, dtype=torch.bfloat16)
        throw = Throw(torch.tensor(3.0), number, 0)
        held.append(Held(param.clone(), grad, *moments, throw, cast))
        assert ferry.holds(moments[0]) == (case["away"] and param.numel() > 0)
    group = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
    with ferry.sailing():
        update_by_kernel_(held, group, case["scale"], ferry)
    return [x for own in held for x in (own.param, own.first, own.second, own.throw.steps, own.cast) if x is not None]


if __name__ == "__main__":
    source, target = sys.argv[1:]
    torch.save([run(case) for case in torch.load(source)], target)
