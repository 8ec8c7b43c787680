"""Blocks compiled one by one (Ansel et al., 2024, doi:10.1145/3620665.3640366): what lies between their matrix products
becomes few kernels.

Blocks alike share what is compiled, so that it takes as long for a hundred of them as for one. The first rows are
compiled for as they are; when others come, with more documents or longer ones, once more for any; for an evaluation,
which needs no gradients, once more.

A compiler follows a block up to what it cannot see through: attention over documents, experts, whose work depends on
their choices, and collectives. There it stops, and goes on behind. Sharding and recomputation stay around it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import torch
from torch import nn
from torch._dynamo import config
from torch._dynamo.exc import FailOnRecompileLimitHit

from omni_parallel.plan import ParallelPlan

M = TypeVar("M", bound=nn.Module)

MOST: Final = 32
"""How often the same code is compiled: for ten kinds of blocks, each for rows as they come, for any, and to evaluate.
Torch's own bound, 8, would let three kinds be trained, and end at the first evaluation."""


def compile_blocks(model: M, plan: ParallelPlan, *, most: int = MOST) -> M:
    """The same model, whose blocks in `plan.compile` run as torch compiles them when they are first called.

    Donates `model`. Names of modules and parameters stay. Numbers are the same but for rounding, and for what dropout
    draws. Modules in `plan.uncompiled` are called as they are, with all that is in them, and with their hooks. Apply it
    after `apply_ulysses` and `apply_ep`, and before `recompute_blocks`, which then runs what is compiled twice, and
    `shard_fsdp`, whose hooks run around it.

    Raises:
        ValueError: in a pass, when the same code would be compiled more than `most` times. Torch itself would only log
            that, and run the rest as it is.
    """
    for name in plan.uncompiled:
        module = model.get_submodule(name)
        module.forward = torch.compiler.disable(module.forward)
    for name in plan.compile:
        block = model.get_submodule(name)
        block.forward = partial(_run, name, most, torch.compile(block.forward))
    return model


def _run(name: str, most: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # No option of `torch.compile` of each version says it, and outside of blocks it is as before.
    with config.patch(fail_on_recompile_limit_hit=True, recompile_limit=most):
        try:
            return forward(*args, **kwargs)
        except FailOnRecompileLimitHit as error:
            raise ValueError(
                f"compile: {name} is one kind of block too many, or comes with one kind of rows too many: the same "
                f"code is compiled at most {most} times. Leave compile out, or give compile_blocks a larger `most`."
            ) from error
