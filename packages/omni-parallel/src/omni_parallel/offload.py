"""Activations in memory of the host between the forward and the backward pass of their block.

A GPU holds what all blocks keep for their backward pass at once, though it works on one block. Here what a block keeps
leaves for pinned memory while the next block runs, and comes back while the block after it runs backward, so that the
GPU holds what two of them keep (Rajbhandari et al., 2021, arXiv:2104.07857, do the same to checkpoints). Copies have
streams of their own. If they are as fast as a block, they cost no time; if not, the blocks wait for them, and no memory
is needed beyond that.

It is done by torch's hooks on what autograd saves, so it reaches whatever saves by autograd's own means: of a block
that is recomputed its inputs, and the outputs that it keeps.
"""

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from omni_parallel.arena import Arena, Place
from omni_parallel.host import make_host
from omni_parallel.local import local
from omni_parallel.plan import ParallelPlan

M = TypeVar("M", bound=nn.Module)

SMALLEST: Final = 1 << 20
"""Bytes of the smallest tensor that is worth the way."""


def offload_blocks(model: M, plan: ParallelPlan, *, smallest: int = SMALLEST) -> M:
    """The same model, with what the blocks in `plan.offload` keep for later in host memory. Donates `model`.

    Parameters stay where they are, and so do tensors of less than `smallest` bytes. Numbers are the same to the bit.
    Apply it after `recompute_blocks` and before `shard_fsdp`. Host memory is pinned when it is first needed, and used
    again in each step, whatever the sizes then: of this rank, as many bytes as those blocks have ever kept at once.

    Raises:
        ValueError: in the first step, if the host has not that much to pin.
    """
    depot = Depot(smallest)
    for name in plan.offload:
        block = model.get_submodule(name)
        experts = [model.get_submodule(part) for part in plan.experts if part.startswith(f"{name}.")]
        begin = partial(depot.open, first=name == plan.offload[0])
        put = partial(_put, depot, list(block.modules()), experts)
        block.forward = partial(_offloaded, begin, (put, depot.get), block.forward)
    return model


def _offloaded(
    begin: Callable[[], None], hooks: tuple[Any, Any], forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    begin()
    with saved_tensors_hooks(*hooks):
        return forward(*args, **kwargs)


def _put(depot: "Depot", modules: list[nn.Module], experts: list[nn.Module], x: Tensor) -> "Tensor | Away":
    return x if type(x) is not Tensor or _is_weight(x, modules, experts) else depot.put(x)


@dataclass(slots=True)
class Group:
    """What one block has put away, and the block before it."""

    before: "Group | None"
    away: "weakref.WeakSet[Away]" = field(default_factory=weakref.WeakSet)


class Away:
    """Stands for a tensor that was put away."""

    def __init__(self, here: Tensor, arena: Arena, place: Place, group: Group) -> None:
        self.here: Tensor | None = here.detach()
        """The tensor, until its copy is made; without its history, which holds what is kept, and so this."""
        self.version = here._version
        self.arena, self.place = arena, place
        self.group = group
        self.size, self.stride, self.device = here.size(), here.stride(), here.device
        self.dtype, self.nbytes = here.dtype, here.nbytes
        self.written: torch.Event | None = None
        self.back: Tensor | None = None
        self.arrived: torch.Event | None = None

    def is_of(self, x: Tensor) -> bool:
        """Whether it stands for the numbers of `x` in their memory, as they are now."""
        own = self.here
        return (
            own is not None
            and own.data_ptr() == x.data_ptr()
            and (own.dtype, own.size(), own.stride()) == (x.dtype, x.size(), x.stride())
            and self.version == x._version
        )

    def write(self, x: Tensor) -> None:
        """Copy the numbers of `x`, for which it stands, to the host."""
        own = _bytes_of(x)
        for first, last, memory in self.arena.parts(self.place, self.nbytes):
            memory.copy_(own[first:last], non_blocking=True)

    def read(self, x: Tensor) -> None:
        """Copy them to `x`, which lies as the one did for which it stands."""
        own = _bytes_of(x)
        for first, last, memory in self.arena.parts(self.place, self.nbytes):
            own[first:last].copy_(memory, non_blocking=True)

    def check(self) -> None:
        """Raises `RuntimeError` if the tensor is not what it was."""
        if self.here is not None and self.here._version != self.version:
            raise RuntimeError(
                f"a tensor of {list(self.size)} that a block keeps for its backward pass was changed in place after: "
                "leave its block out of offload."
            )


class Depot:
    """Where the blocks of one model put what they keep."""

    def __init__(self, smallest: int) -> None:
        self.smallest = smallest
        self.arenas: dict[torch.device, Arena] = {}
        """Memory of the host for tensors of each device."""
        self.last: Group | None = None
        self.leaving: deque[tuple[torch.Event | None, list[Away]]] = deque()
        """By block: what is to wait for before its tensors may go, and what they are."""
        self.ways: tuple[torch.Stream, torch.Stream] | None = None
        """The streams out and back."""

    def open(self, *, first: bool) -> None:
        """The next block, or the first, begins: what the one before the last has put away leaves the device."""
        self._release(but=0 if first else 1)
        self.last = Group(None if first else self.last)
        self.leaving.append((None, []))

    def put(self, x: Tensor) -> "Tensor | Away":
        """What autograd keeps for `x`."""
        if not _is_worth(x, self.smallest):
            return x
        assert self.last is not None
        # Several operators save the same input. While its memory is held it cannot be that of another.
        for _, held in self.leaving:
            for known in held:
                if known.is_of(x):
                    return known
        arena = self._arena(x.device)
        away = Away(x, arena, arena.take(x.nbytes), self.last)
        weakref.finalize(away, arena.returned.append, away.place)
        if x.is_cuda:
            out, back = self._ways(x.device)
            out.wait_stream(torch.cuda.current_stream(x.device))
            out.wait_stream(back)  # What was there before may still be on its way.
            with torch.cuda.stream(out), torch.no_grad():
                away.write(x)
            away.written = out.record_event()
        else:
            away.write(x)
        _, held = self.leaving.pop()
        self.leaving.append((away.written, [*held, away]))
        self.last.away.add(away)
        return away

    def get(self, kept: "Tensor | Away") -> Tensor:
        """What `put` was given."""
        if isinstance(kept, Tensor):
            return kept
        if kept.here is not None:
            kept.check()
            return kept.here
        self._release(but=0)
        for group in (kept.group, kept.group.before):
            for away in list(group.away) if group is not None else []:
                self._bring(away)
        assert kept.back is not None
        if kept.arrived is not None:
            torch.cuda.current_stream(kept.device).wait_event(kept.arrived)
        return kept.back

    def _bring(self, away: Away) -> None:
        """Let `away` be on its way back."""
        if away.back is not None or away.here is not None:
            return
        away.back = torch.empty_strided(away.size, away.stride, dtype=away.dtype, device=away.device)
        if away.written is None:
            away.read(away.back)
            return
        _, back = self._ways(away.device)
        back.wait_stream(torch.cuda.current_stream(away.device))  # Its memory may still be in use there.
        back.wait_event(away.written)
        with torch.cuda.stream(back):
            away.read(away.back)
        away.back.record_stream(back)  # It may be dropped unused.
        away.arrived = back.record_event()

    def _release(self, *, but: int) -> None:
        """Forget the tensors of all blocks but the last few, after what comes has waited for their copies."""
        while len(self.leaving) > but:
            written, held = self.leaving.popleft()
            for away in held:
                if written is not None:
                    torch.cuda.current_stream(away.device).wait_event(written)
                away.check()
                away.here = None

    def _arena(self, device: torch.device) -> Arena:
        if device not in self.arenas:
            remedy = "offload fewer blocks, or have them keep less"
            make = partial(make_host, pin=device.type == "cuda", what="activations", remedy=remedy)
            self.arenas[device] = Arena(make)
        return self.arenas[device]

    def _ways(self, device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
        if self.ways is None:
            self.ways = torch.cuda.Stream(device), torch.cuda.Stream(device)
        return self.ways  # pyright: ignore[reportReturnType]


def _is_worth(x: Tensor, smallest: int) -> bool:
    own = not isinstance(x, nn.Parameter) and not isinstance(x._base, nn.Parameter)
    as_it_lies = type(x) is Tensor and not x.is_conj() and not x.is_neg() and _is_dense(x)
    return own and as_it_lies and x.nbytes >= smallest


def _is_weight(x: Tensor, modules: list[nn.Module], experts: list[nn.Module]) -> bool:
    """Whether `x` lies in memory of a parameter of `experts`, or of what stands for one of `modules` in calls.

    Those of experts are DTensors, also where they are gathered; others are casts. What is saved of both is plain and no
    parameter's view. Memory of gathered ones is freed with the call, before a copy of it is sure to be made.
    """
    shown = [
        (module, vars(module).get(name, param)) for module in modules for name, param in module._parameters.items()
    ]
    weights = [w for module, w in shown if w is not None and (module in experts or not isinstance(w, nn.Parameter))]
    places = {local(weight).untyped_storage().data_ptr() for weight in weights}
    return x.untyped_storage().data_ptr() in places - {0}


def _bytes_of(x: Tensor) -> Tensor:
    """All bytes of a dense tensor, as they lie."""
    return x.detach().as_strided((x.numel(),), (1,), x.storage_offset()).view(torch.uint8)


def _is_dense(x: Tensor) -> bool:
    """Whether the elements of `x` fill a piece of memory, in any order."""
    width = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.size(), strict=True) if size != 1):
        if stride != width:
            return False
        width *= size
    return True
