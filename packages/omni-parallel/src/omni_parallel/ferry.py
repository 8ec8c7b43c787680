"""Moments in memory of the host, and their way through the device while parameters are updated.

Between updates nobody needs them, and they are two thirds of what is kept of a parameter (Rajbhandari et al., 2021,
arXiv:2104.07857). Piece after piece comes to the device, is changed there with its parameter, and goes back: one
comes while another is computed with and a third leaves, so that an update takes as long as the link needs for them
one way. What leaves last does so under the next forward pass.
"""

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from omni_parallel.host import Host, make_host
from omni_parallel.local import local

SMALLEST: Final = 1 << 20
"""Bytes of the smallest tensor that is worth the way."""
MOST: Final = 1 << 23
"""Numbers of a piece."""
_BERTHS: Final = 3
"""Pieces on the device at once: one that comes, one that is there, one that leaves."""


@dataclass(slots=True)
class Berth:
    """Memory of the device for a piece of both moments."""

    memory: tuple[Tensor, Tensor]
    """Bytes."""
    left: torch.Event | None = None
    """Set once what was there last is back in memory of the host."""


class Ferry:
    """Where the moments of one optimizer are, and how they move."""

    def __init__(self, *, smallest: int = SMALLEST, most: int = MOST) -> None:
        """Tensors of less than `smallest` bytes stay; pieces have at most `most` numbers, which divides by 4."""
        assert most % 4 == 0
        self.smallest, self.most = smallest, most
        self.hosts: dict[int, Host] = {}
        """By where they begin; pinned as long as they are held."""
        self.berths: deque[Berth] = deque()
        """By when they were used last."""
        self.ways: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None
        """The streams to the device and back."""

    def zeros_like(self, param: Tensor, dtype: torch.dtype) -> Tensor:
        """Zeros of the shape, and the placements, of `param`: in memory of the host if they are worth it."""
        own = local(param)
        nbytes = own.numel() * dtype.itemsize
        if nbytes < max(self.smallest, 1):
            return torch.zeros_like(param, dtype=dtype)
        remedy = "leave moments on the device, or make them narrower"
        host = make_host(nbytes, pin=own.is_cuda, what="moments", remedy=remedy)
        self.hosts[host.memory.data_ptr()] = host
        here = host.memory.view(dtype).view(own.shape)
        return _in_place_of_local(torch.empty_like(param, dtype=dtype), here) if isinstance(param, DTensor) else here

    def holds(self, own: Tensor) -> bool:
        """Whether all of `own`, a part of this rank, is in memory of the host that is held here."""
        return own.data_ptr() in self.hosts

    @contextmanager
    def sailing(self) -> Iterator[None]:
        """While an update is under way: before it the moments are in memory of the host, and after it on the way."""
        if self.ways is not None:
            into, back = self.ways
            into.wait_stream(back)
        try:
            yield
        finally:
            # Their memory is for others once the copies are made: the allocator knows which streams read it.
            self.berths.clear()

    @contextmanager
    def carry(self, first: Tensor, second: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Moments of a piece (n,), there on `device` while this is open, and after it on their way back."""
        if device.type != "cuda":
            there = first.to(device, copy=True), second.to(device, copy=True)
            yield there
            first.copy_(there[0])
            second.copy_(there[1])
            return
        into, back = self._ways(device)
        current = torch.cuda.current_stream(device)
        berth = self._find_berth(device)
        there = tuple(memory[: x.nbytes].view(x.dtype) for memory, x in zip(berth.memory, (first, second), strict=True))
        if berth.left is None:
            into.wait_stream(current)  # Where what had its memory before was computed.
        else:
            into.wait_event(berth.left)
        with torch.cuda.stream(into):
            there[0].copy_(first, non_blocking=True)
            there[1].copy_(second, non_blocking=True)
        current.wait_stream(into)
        yield there[0], there[1]
        back.wait_stream(current)
        with torch.cuda.stream(back):
            first.copy_(there[0], non_blocking=True)
            second.copy_(there[1], non_blocking=True)
        berth.left = back.record_event()

    def wait(self) -> None:
        """Until all moments are in memory of the host, where others may read and write them."""
        if self.ways is not None:
            self.ways[1].synchronize()

    def _find_berth(self, device: torch.device) -> Berth:
        """The one that is free, or will be first."""
        if len(self.berths) < _BERTHS:
            nbytes = self.most * torch.float32.itemsize
            memory = [torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(2)]
            for each in memory:
                for way in self._ways(device):
                    each.record_stream(way)
            berth = Berth((memory[0], memory[1]))
        else:
            berth = self.berths.popleft()
        self.berths.append(berth)
        return berth

    def _ways(self, device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
        if self.ways is None:
            self.ways = torch.cuda.Stream(device), torch.cuda.Stream(device)
            # Memory of the host is not given back under a copy.
            weakref.finalize(self, self.ways[1].synchronize).atexit = False
        return self.ways


def _in_place_of_local(like: DTensor, own: Tensor) -> Tensor:
    """`own` as this rank's part of a tensor like `like`.

    `DTensor.from_local` would copy it to the device of its mesh; FSDP2 makes tensors like this one where it offloads.
    Done by the way in which torch takes apart such tensors and puts them together, so that no name of their parts but
    one is needed.
    """
    names, rest = like.__tensor_flatten__()
    parts = {name: getattr(like, name) for name in names} | {"_local_tensor": own}
    return DTensor.__tensor_unflatten__(parts, rest, like.shape, like.stride())
