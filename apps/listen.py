"""What listens while blocks are rehearsed: it knows the bytes of every tensor that is there, and counts what is done.

Kernels that are none of torch's operators say by themselves what they move and send, see `standins.py`.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from work import Attention, Load, Send


@dataclass(slots=True)
class Pass:
    """What is seen while a block runs in one direction."""

    start: int = 0
    most: int = 0
    end: int = 0
    flops: dict[int, int] = field(default_factory=lambda: {8: 0, 16: 0, 32: 0})
    moved: int = 0
    kernels: int = 0
    quantized: int = 0
    attention: list[Attention] = field(default_factory=list)
    sent: list[Send] = field(default_factory=list)

    def sum(self) -> Load:
        """What was seen, in all."""
        sixteen, eight = self.flops[16] + self.flops[32], self.flops[8]
        memory = (self.most - self.start, self.end - self.start)
        told = (self.moved, self.kernels, self.quantized)
        return Load(*memory, sixteen, eight, *told, tuple(self.attention), tuple(self.sent))


_FREE: Final = frozenset(
    {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh"}
)
_PRODUCTS: Final = frozenset({"mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "_scaled_mm"})


class Watch(TorchDispatchMode):
    """While open, it knows the bytes of all storages that were made, and what was computed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        tensors = (*model.parameters(), *model.buffers())
        self.known = {tensor.untyped_storage()._cdata for tensor in tensors}
        self.refs: dict[int, Any] = {}
        self.live = 0
        self.now = Pass()
        self.used = 1.0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        outs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        for x in outs:
            self._hold(x)
        name = op.name().partition(".")[0].rpartition("::")[2]
        if name.startswith("fa4_"):
            self._note_attention(name, args)
        elif name in _PRODUCTS:
            self._note_product(name, args, outs[0])
        elif name not in _FREE and not name.endswith("empty_like"):
            ins = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            places = {x.untyped_storage()._cdata for x in ins}
            if not name.endswith("_") and outs and all(x.untyped_storage()._cdata in places for x in outs):
                return out  # A view.
            self.moves(*ins, *outs)
        return out

    def moves(self, *tensors: Tensor, share: float = 1.0) -> None:
        """A kernel reads or writes such a share of these."""
        self.now.moved += round(share * sum(x.numel() * x.dtype.itemsize for x in tensors))
        self.now.kernels += 1

    def sends(self, op: str, axis: str, x: Tensor) -> None:
        """A collective of the ranks of `axis` is given, or gives, `x`."""
        self.now.sent.append(Send(op, axis, x.numel() * x.dtype.itemsize))

    def begin(self, passed: Pass) -> None:
        """From here on what is seen is of `passed`."""
        self.now = passed
        passed.start = passed.most = self.live

    def finish(self) -> None:
        """What comes is of nothing."""
        self.now.end = self.live
        self.now = Pass()

    def _hold(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        place = storage._cdata
        if place in self.known or place in self.refs:
            return
        nbytes = storage.nbytes()
        self.refs[place] = weakref.ref(storage, partial(self._drop, place, nbytes))
        self._add(nbytes)

    def _drop(self, place: int, nbytes: int, ref: Any) -> None:
        if self.refs.pop(place, None) is not None:
            self.live -= nbytes

    def _add(self, nbytes: int) -> None:
        self.live += nbytes
        self.now.most = max(self.now.most, self.live)

    def _note_product(self, name: str, args: Sequence[Any], out: Tensor) -> None:
        a, b = (args[1], args[2]) if name in ("addmm", "baddbmm") else (args[0], args[1])
        share = self.used if name == "_grouped_mm" else 1.0
        self.now.flops[8 * a.dtype.itemsize] += round(share * 2 * a.numel() * b.shape[-1])
        self.now.quantized += a.numel() + b.numel() if a.dtype.itemsize == 1 else 0
        self.moves(a, b, out)

    def _note_attention(self, name: str, args: Sequence[Any]) -> None:
        backward = name == "fa4_backward"
        q, k, v = args[1:4] if backward else args[:3]
        causal, window = (args[9], args[10]) if backward else (args[6], args[7])
        tokens, N, K = q.shape[0] * q.shape[1], q.shape[2], k.shape[2]
        flops = 2 * N * (q.shape[3] + v.shape[3])
        if backward:
            # Three of five products are as wide as queries, two as values.
            flops = 2 * N * (3 * q.shape[3] + 2 * v.shape[3])
            # Its kernels add up the gradient of queries, and of keys that are shared, in fp32.
            wide = 4 * q.numel() + (4 * (k.numel() + v.numel()) if N != K else 0) + 8 * N * tokens
            self._add(wide)
            self.live -= wide
        self.now.attention.append(Attention(flops, tokens, window, causal, backward))
        self.now.kernels += 3 if backward else 1
