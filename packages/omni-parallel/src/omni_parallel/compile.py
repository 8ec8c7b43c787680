"""Blocks compiled one by one (Ansel et al., 2024, doi:10.1145/3620665.3640366): what lies between their matrix products
becomes few kernels.

Blocks alike share what is compiled, so that it takes as long for a hundred of them as for one. The first rows are
compiled for as they are; when others come, with more documents or longer ones, once more for any.

A compiler follows a block up to what it cannot see through: attention over documents, experts, whose work depends on
their choices, and collectives. There it stops, and goes on behind. Sharding and recomputation stay around it.
"""

from typing import TypeVar

import torch
from torch import nn

from omni_parallel.plan import ParallelPlan

M = TypeVar("M", bound=nn.Module)


def compile_blocks(model: M, plan: ParallelPlan) -> M:
    """The same model, whose blocks in `plan.compile` run as torch compiles them when they are first called.

    Donates `model`. Names of modules and parameters stay. Numbers are the same but for rounding, and for what dropout
    draws. Modules in `plan.uncompiled` are called as they are, with all that is in them, and with their hooks. Apply it
    after `apply_ulysses` and `apply_ep`, and before `recompute_blocks`, which then runs what is compiled twice, and
    `shard_fsdp`, whose hooks run around it.
    """
    for name in plan.uncompiled:
        module = model.get_submodule(name)
        module.forward = torch.compiler.disable(module.forward)
    for name in plan.compile:
        block = model.get_submodule(name)
        block.forward = torch.compile(block.forward)
    return model
