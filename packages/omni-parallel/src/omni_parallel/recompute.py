"""Recomputing activations in the backward pass, block by block (Chen et al., 2016, arXiv:1604.06174)."""

from functools import partial
from typing import TypeVar

from torch import nn
from torch.utils.checkpoint import checkpoint

from omni_parallel.plan import ParallelPlan

M = TypeVar("M", bound=nn.Module)


def recompute_blocks(model: M, plan: ParallelPlan) -> M:
    """The same model, keeping only the inputs of each block in `plan.recompute`. Donates `model`.

    Names of modules and parameters stay. Numbers stay too: the random state of each block is kept and put back, so
    dropout draws the same mask twice. Apply it before `shard_fsdp`, whose hooks then run around the recomputation.
    """
    for name in plan.recompute:
        block = model.get_submodule(name)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return model
