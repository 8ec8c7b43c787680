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

from omni_parallel.host import Host, make_host
from omni_parallel.local import local
from omni_parallel.plan import ParallelPlan

M = TypeVar("M", bound=nn.Module)

SMALLEST: Final = 1 << 20
"""Bytes of the smallest tensor that is worth the way."""
SLACK: Final = 1.25
"""How much more memory of the host may be held than has ever been needed at once."""


def offload_blocks(model: M, plan: ParallelPlan, *, smallest: int = SMALLEST) -> M:
    """The same model, with what the blocks in `plan.offload` keep for later in host memory. Donates `model`.

    Parameters stay where they are, and so do tensors of less than `smallest` bytes. Numbers are the same to the bit.
    Apply it after `recompute_blocks` and before `shard_fsdp`. Host memory is pinned when it is first needed, and used
    again in each step: of this rank, as many bytes as those blocks keep; up to a quarter more where sizes differ from
    step to step, as those of tokens that come to spread experts do.

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

    def __init__(self, here: Tensor, host: Host, group: Group) -> None:
        self.here: Tensor | None = here.detach()
        """The tensor, until its copy is made; without its history, which holds what is kept, and so this."""
        self.version = here._version
        self.host = host
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

    def there(self) -> Tensor:
        """Its memory of the host as a tensor that lies as the one did that it stands for."""
        return self.host.memory[: self.nbytes].view(self.dtype).as_strided(self.size, self.stride)

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
        self.free: dict[int, list[Host]] = {}
        """Memory that nobody uses, by bytes."""
        self.returned: deque[Host] = deque()
        """Memory that nobody uses any longer, from whichever thread."""
        self.held = self.most = 0
        """Bytes of all memory of the host that there is, and the most that were in use at once."""
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
        away = Away(x, self._find_host(x), self.last)
        weakref.finalize(away, self.returned.append, away.host)
        target = away.there()
        if x.is_cuda:
            out, _ = self._ways(x.device)
            out.wait_stream(torch.cuda.current_stream(x.device))
            if away.host.used is not None:
                out.wait_event(away.host.used)
            with torch.cuda.stream(out), torch.no_grad():
                target.copy_(x, non_blocking=True)
            away.written = away.host.used = out.record_event()
        else:
            with torch.no_grad():
                target.copy_(x)
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
        source = away.there()
        away.back = torch.empty_strided(away.size, away.stride, dtype=source.dtype, device=away.device)
        if away.written is None:
            away.back.copy_(source)
            return
        _, back = self._ways(away.device)
        back.wait_stream(torch.cuda.current_stream(away.device))  # Its memory may still be in use there.
        back.wait_event(away.written)
        with torch.cuda.stream(back):
            away.back.copy_(source, non_blocking=True)
        away.back.record_stream(back)  # It may be dropped unused.
        away.arrived = away.host.used = back.record_event()

    def _release(self, *, but: int) -> None:
        """Forget the tensors of all blocks but the last few, after what comes has waited for their copies."""
        while len(self.leaving) > but:
            written, held = self.leaving.popleft()
            for away in held:
                if written is not None:
                    torch.cuda.current_stream(away.device).wait_event(written)
                away.check()
                away.here = None

    def _find_host(self, x: Tensor) -> Host:
        """Memory for `x`: of its size, or a little larger, or else new, before which other memory that is free goes."""
        while self.returned:
            host = self.returned.popleft()
            self.free.setdefault(host.memory.nbytes, []).append(host)
        fits = [x.nbytes] if x.nbytes in self.free else [s for s in self.free if x.nbytes <= s <= SLACK * x.nbytes]
        host = self._take(min(fits)) if fits else None
        using = self.held - sum(size * len(hosts) for size, hosts in self.free.items()) + (0 if host else x.nbytes)
        self.most = max(self.most, using)
        if host is None:
            while self.free and self.held + x.nbytes > SLACK * self.most:
                self._drop(self._take(next(iter(self.free))))
            remedy = "offload fewer blocks, or have them keep less"
            host = make_host(x.nbytes, pin=x.is_cuda, what="activations", remedy=remedy)
            self.held += host.memory.nbytes
        return host

    def _take(self, size: int) -> Host:
        hosts = self.free[size]
        host = hosts.pop()
        if not hosts:
            del self.free[size]
        return host

    def _drop(self, host: Host) -> None:
        if host.used is not None:
            host.used.synchronize()
        self.held -= host.memory.nbytes

    def _ways(self, device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
        if self.ways is None:
            self.ways = torch.cuda.Stream(device), torch.cuda.Stream(device)
        return self.ways  # pyright: ignore[reportReturnType]


def _is_worth(x: Tensor, smallest: int) -> bool:
    own = not isinstance(x, nn.Parameter) and not isinstance(x._base, nn.Parameter)
    return own and type(x) is Tensor and x.nbytes >= smallest and _is_dense(x)


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


def _is_dense(x: Tensor) -> bool:
    """Whether the elements of `x` fill a piece of memory, in any order."""
    width = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.size(), strict=True) if size != 1):
        if stride != width:
            return False
        width *= size
    return True
