"""Recomputing activations in the backward pass, block by block (Chen et al., 2016, arXiv:1604.06174).

A block may keep the outputs of a few operators all the same (Korthikanti et al., 2022, arXiv:2205.05198): what costs
much to compute and little to hold, attention above all, then runs once.
"""

from functools import partial
from typing import Any, TypeVar

from torch import nn
from torch._ops import OpOverload
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from omni_parallel.plan import ParallelPlan

M = TypeVar("M", bound=nn.Module)


def recompute_blocks(model: M, plan: ParallelPlan) -> M:
    """The same model, keeping only the inputs of each block in `plan.recompute`, and in those the outputs of the
    operators in `plan.keep`, wherever in the block they are called. Donates `model`.

    Names of modules and parameters stay. Numbers stay too: the random state of each block is kept and put back, so
    dropout draws the same mask twice. Apply it before `shard_fsdp`, whose hooks then run around the recomputation.
    """
    contexts = partial(create_selective_checkpoint_contexts, partial(_policy, frozenset(plan.keep)))
    selective = {"context_fn": contexts} if plan.keep else {}
    for name in plan.recompute:
        block = model.get_submodule(name)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, **selective)
    return model


def _policy(
    keep: frozenset[str], context: SelectiveCheckpointContext, op: OpOverload, *args: Any, **kwargs: Any
) -> CheckpointPolicy:
    """An operator is kept whatever its overload: `aten::mm` names `aten::mm.dtype` too."""
    kept = op.name().partition(".")[0] in keep and not _drops(op, args, kwargs)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _drops(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call draws random numbers: skipped in the backward pass, it would leave the draws after it askew."""
    # The schema is private to torch, and the only place that says which argument is the probability of dropout.
    names = (argument.name for argument in op._schema.arguments)
    return bool((dict(zip(names, args, strict=False)) | kwargs).get("dropout_p", 0.0))
