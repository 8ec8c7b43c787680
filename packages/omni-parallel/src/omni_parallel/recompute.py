"""Recomputing activations in the backward pass, block by block (Chen et al., 2016, arXiv:1604.06174).

A block may keep the outputs of a few operators all the same (Korthikanti et al., 2022, arXiv:2205.05198): what costs
much to compute and little to hold, attention above all, then runs once.
"""

from functools import partial
from typing import Any, TypeVar

from torch import nn
from torch._ops import OpOverload
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from omni_parallel.plan import ParallelPlan

M = TypeVar("M", bound=nn.Module)


def recompute_blocks(model: M, plan: ParallelPlan) -> M:
    """The same model, keeping only the inputs of each block in `plan.recompute`, and in those the outputs of the
    operators in `plan.keep`. Donates `model`.

    Names of modules and parameters stay. Numbers stay too: the random state of each block is kept and put back, so
    dropout draws the same mask twice. Apply it before `shard_fsdp`, whose hooks then run around the recomputation.
    """
    contexts = partial(create_selective_checkpoint_contexts, partial(_policy, frozenset(plan.keep)))
    selective = {"context_fn": contexts} if plan.keep else {}
    for name in plan.recompute:
        block = model.get_submodule(name)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, **selective)
    return model


def _policy(keep: frozenset[str], context: object, op: OpOverload, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """An operator is kept whatever its overload: `aten::mm` names `aten::mm.dtype` too."""
    name = op.name().partition(".")[0]
    return CheckpointPolicy.MUST_SAVE if name in keep else CheckpointPolicy.PREFER_RECOMPUTE
