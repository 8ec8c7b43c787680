"""Recomputing activations in the backward pass, block by block (Chen et al., 2016, arXiv:1604.06174).

A block may keep the outputs of a few operators all the same (Korthikanti et al., 2022, arXiv:2205.05198): what costs
much to compute and little to hold, attention above all, then runs once. What nothing in the backward pass asks for, as
the last product of a block that only adds it to what came in, is not kept. Of spread experts it keeps how much goes
where.

torch has selective recomputation too, but it wants a block to run the same operators twice, all of them; where a part
of the block is a unit of sharding, its gathering runs when it is needed, which is not the same. Here only the operators
that are kept have to come in the same order.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from omni_parallel.ep import remember_travels
from omni_parallel.plan import KEPT, ParallelPlan

M = TypeVar("M", bound=nn.Module)
Opens = Callable[[], AbstractContextManager[Any]]
"""What makes a context."""


def recompute_blocks(model: M, plan: ParallelPlan) -> M:
    """The same model, keeping only the inputs of each block in `plan.recompute`, and in those the outputs of the
    operators in `plan.keep`, wherever in the block they are called; in those of `plan.keep_matmuls` also of matrix
    products. Donates `model`.

    Names of modules and parameters stay. Numbers stay too: the random state of each block is kept and put back, so
    dropout draws the same mask twice. Apply it before `shard_fsdp`, whose hooks then run around the recomputation.
    """
    for name in plan.recompute:
        block = model.get_submodule(name)
        experts = [model.get_submodule(part) for part in plan.experts if part.startswith(f"{name}.")]
        keep = KEPT["matmuls"] if name in plan.keep_matmuls else plan.keep
        block.forward = partial(_recomputed, block.forward, frozenset(keep), experts)
    return model


def _recomputed(
    forward: Callable[..., Any], keep: frozenset[str], experts: list[nn.Module], *args: Any, **kwargs: Any
) -> Any:
    shelf = Shelf()
    selective = {"context_fn": partial(_contexts, keep, experts, shelf)} if keep or experts else {}
    out = checkpoint(forward, *args, use_reentrant=False, **selective, **kwargs)
    shelf.close()
    return out


class Together:
    """Several contexts as one, made anew each time it is opened."""

    def __init__(self, opens: Sequence[Opens]) -> None:
        self.opens, self.stack = opens, ExitStack()

    def __enter__(self) -> None:
        for make in self.opens:
            self.stack.enter_context(make())

    def __exit__(self, *raised: Any) -> None:
        self.stack.pop_all().__exit__(*raised)


@dataclass(frozen=True, slots=True)
class Versioned:
    """A tensor without its history, as it was."""

    tensor: Tensor
    version: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is among those that were saved."""

    index: int


@dataclass(slots=True)
class Saves:
    """How many tensors autograd has saved."""

    number: int = 0


UNNEEDED: Final = object()
"""Stands for what an operator gave after which autograd saved nothing: recomputation ends before it."""


class Shelf:
    """What the kept operators of a block give in its forward pass, in that order, for its recomputation."""

    def __init__(self) -> None:
        self.saves = Saves()
        self.kept: deque[tuple[OpOverload, int, Any]] = deque()
        """Of each operator what had been saved before, and what it gave."""
        self.saved: Tensor | None = None
        self.tensors: tuple[Tensor, ...] = ()

    def add(self, op: OpOverload, out: Any) -> None:
        """Put there what `op` gave."""
        self.kept.append((op, self.saves.number, tree_map_only(Tensor, _as_it_is, out)))

    def close(self) -> None:
        """The forward pass is over. From here on autograd saves the tensors as it does others, so that whoever has a
        say in how it saves has it for these too."""
        tensors: list[Tensor] = []

        def save(op: OpOverload, kept: Versioned) -> Place:
            tensors.append(_as_it_was(op, kept))
            return Place(len(tensors) - 1)

        def settle(op: OpOverload, before: int, out: Any) -> Any:
            return tree_map_only(Versioned, partial(save, op), out) if before < self.saves.number else UNNEEDED

        if not torch.is_grad_enabled():
            self.kept.clear()
        self.kept = deque((op, before, settle(op, before, out)) for op, before, out in self.kept)
        if tensors:
            self.saved = _save(torch.empty(0, requires_grad=True), *tensors)

    def take(self, op: OpOverload) -> Any:
        """What `op` gave, which is next, or `UNNEEDED`."""
        if not self.kept or self.kept[0][0] != op:
            ran = self.kept[0][0].name() if self.kept else "nothing"
            raise RuntimeError(
                f"a recomputed block runs {op.name()} where {ran} is kept of its forward pass: a block has to do the "
                "same twice, and a backward pass through it can be run once."
            )
        if self.saved is not None:
            node: Any = self.saved.grad_fn
            self.tensors, self.saved = node.saved_tensors, None
        return tree_map_only(Place, lambda place: self.tensors[place.index].detach(), self.kept.popleft()[2])


class _Save(torch.autograd.Function):
    """Nothing, but that autograd saves what it is given."""

    @staticmethod
    def forward(ctx: Any, door: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return torch.empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise AssertionError("nobody has its output")


_save: Callable[..., Tensor] = _Save.apply  # pyright: ignore[reportAssignmentType]


class Keep(TorchDispatchMode):
    """While open, what the operators of `keep` give is put on the shelf."""

    def __init__(self, keep: frozenset[str], shelf: Shelf) -> None:
        super().__init__()
        self.keep, self.shelf = keep, shelf

    def __torch_dispatch__(self, op: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        if _is_kept(self.keep, op, args, kwargs or {}):
            self.shelf.add(op, out)
        return out


@contextmanager
def counted(saves: Saves) -> Iterator[None]:
    """While open, what autograd saves is counted; saved it is as it would be."""
    # torch has no public name for the hooks in force, of which only the last are called.
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
    pack, unpack = hooks or (_itself, _itself)

    def count(x: Tensor) -> Any:
        saves.number += 1
        return pack(x)

    with saved_tensors_hooks(count, unpack):
        yield


def _itself(x: Tensor) -> Tensor:
    return x


class Recall(TorchDispatchMode):
    """While open, the operators of `keep` do not run: they give what they gave before, in the same order."""

    def __init__(self, keep: frozenset[str], shelf: Shelf) -> None:
        super().__init__()
        self.keep, self.shelf = keep, shelf

    def __torch_dispatch__(self, op: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = self.shelf.take(op) if _is_kept(self.keep, op, args, kwargs or {}) else UNNEEDED
        return op(*args, **(kwargs or {})) if given is UNNEEDED else given


def _as_it_is(x: Tensor) -> Versioned:
    # Below autograd, where a mode runs, an alias has a version of its own, and a later change would not show in it.
    # torch has no public name for this guard.
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        return Versioned(x.detach(), x._version)


def _as_it_was(op: OpOverload, kept: Versioned) -> Tensor:
    if kept.tensor._version != kept.version:
        raise RuntimeError(f"what {op.name()} gave was changed in place, so it cannot be kept: leave it out of keep.")
    return kept.tensor.detach()


def _contexts(keep: frozenset[str], experts: list[nn.Module], shelf: Shelf) -> tuple[Together, Together]:
    """What is open in one forward pass of a block, and in its recomputation."""
    pairs: list[tuple[Opens, Opens]] = []
    if keep:
        pairs += [
            (partial(Keep, keep, shelf), partial(Recall, keep, shelf)),
            (partial(counted, shelf.saves), nullcontext),
        ]
    pairs += [remember_travels(experts)] if experts else []
    return Together([first for first, _ in pairs]), Together([again for _, again in pairs])


def _is_kept(keep: frozenset[str], op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """An operator is kept whatever its overload: `aten::mm` names `aten::mm.dtype` too."""
    return op.name().partition(".")[0] in keep and not _drops(op, args, kwargs)


def _drops(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call draws random numbers: skipped in the backward pass, it would leave the draws after it askew."""
    # The schema is private to torch, and the only place that says which argument is the probability of dropout.
    names = (argument.name for argument in op._schema.arguments)
    return bool((dict(zip(names, args, strict=False)) | kwargs).get("dropout_p", 0.0))
