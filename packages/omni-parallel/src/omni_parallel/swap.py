"""Tokens for heads, and back: the all-to-all of sequence parallelism, of several tensors at once and in chunks.

Before attention each rank has all heads of its own tokens; attention needs all tokens of its own heads. A `Crossing`
takes tensors from the one layout to the other and their gradients back, in one collective a chunk of heads. Chunks
are under way while others are computed: sending never waits, and a chunk is waited for where it is used. In the
backward pass the autograd engine runs what was made last first, so the order is mirrored and the overlap with it.

Dimensions: B rows, P ranks of the group, s tokens of a row on each, S = P * s tokens of a row, N heads, n heads of
this rank, D head dim. A tensor may have fewer heads than another, each serving a group of the other's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from omni_parallel.heads import deal_heads, shared_heads


@dataclass(frozen=True, slots=True)
class Route:
    """Who gets which heads, in which chunk."""

    group: dist.ProcessGroup
    rank: int
    num_heads: int
    """N, of the tensor that has most."""
    runs: tuple[tuple[range, ...], ...]
    """Heads by chunk and by rank."""

    @property
    def ranks(self) -> int:
        """P."""
        return len(self.runs[0])

    def heads(self, chunk: int, rank: int, num_heads: int) -> range:
        """Which heads of a tensor of `num_heads` go to `rank` in `chunk`."""
        return shared_heads(self.runs[chunk][rank], self.num_heads // num_heads)


def find_route(group: dist.ProcessGroup, num_heads: int, fewest: int, chunks: int) -> Route:
    """The route of tensors with `num_heads` heads at most and `fewest` at least, in so many chunks."""
    share = num_heads // fewest
    by_rank = deal_heads(0, num_heads, share, dist.get_world_size(group))
    runs = tuple(zip(*(deal_heads(run.start, run.stop, share, chunks) for run in by_rank), strict=True))
    return Route(group, dist.get_rank(group), num_heads, runs)


class Crossing:
    """One crossing of some tensors along a route, and what is under way of it. Lives for one call and its backward."""

    def __init__(self, route: Route, counts: Sequence[int]) -> None:
        self.route = route
        self.counts = tuple(counts)
        """The heads of each tensor, on all ranks together."""
        self.flights: dict[int, tuple[Any, Tensor, list[int], Tensor]] = {}
        """By chunk: the collective, what it fills, how that is cut by rank, and what it reads."""
        self.widths: tuple[int, ...] = ()
        """D of each tensor."""
        self.rows, self.tokens = 0, 0
        """B and s."""

    def send_heads(self, chunk: int, xs_BNsD: Sequence[Tensor]) -> None:
        """Start: each rank gets its heads of this rank's tokens."""
        route = self.route
        self._measure(xs_BNsD, xs_BNsD[0].shape[2])
        messages = [
            [x[:, _slice(route.heads(chunk, rank, count))] for x, count in zip(xs_BNsD, self.counts, strict=True)]
            for rank in range(route.ranks)
        ]
        self._launch(chunk, *self._pack(messages), [self._elements(chunk, route.rank)] * route.ranks)

    def receive_tokens(self, chunk: int) -> list[Tensor]:
        """Finish `send_heads`: this rank's heads of all tokens, a (B, n, S, D) each."""
        received, _ = self._land(chunk)
        flat_PBsW = received.view(self.route.ranks, self.rows, self.tokens, self._width(chunk, self.route.rank))
        # No copy if there is one row: its tokens lie in the order of the ranks that sent them.
        return self._pieces(chunk, self.route.rank, flat_PBsW.transpose(0, 1).flatten(1, 2))

    def send_tokens(self, chunk: int, xs_BnSD: Sequence[Tensor]) -> None:
        """Start: each rank gets its tokens of this rank's heads."""
        route = self.route
        tokens = xs_BnSD[0].shape[2] // route.ranks
        self._measure(xs_BnSD, tokens)
        incoming = [self._elements(chunk, rank) for rank in range(route.ranks)]
        if len(xs_BnSD) == self.rows == 1:
            # The tokens of one tensor of one row lie in the order of the ranks that get them.
            sent = xs_BnSD[0].transpose(1, 2).contiguous().view(-1)
            self._launch(chunk, sent, [sent.numel() // route.ranks] * route.ranks, incoming)
        else:
            messages = [[x[:, :, rank * tokens : (rank + 1) * tokens] for x in xs_BnSD] for rank in range(route.ranks)]
            self._launch(chunk, *self._pack(messages), incoming)

    def receive_heads(self) -> list[Tensor]:
        """Finish `send_tokens` of every chunk: all heads of this rank's tokens, a (B, N, s, D) each.

        What came more than once, since several ranks or chunks had a copy of the head, is summed in fp32.
        """
        route = self.route
        chunks, ranks = range(len(route.runs)), range(route.ranks)
        landed: list[list[tuple[range, Tensor]]] = [[] for _ in self.counts]
        for chunk in chunks:
            received, sizes = self._land(chunk)
            for rank, part in zip(ranks, received.split(sizes), strict=True):
                flat_BsW = part.view(self.rows, self.tokens, self._width(chunk, rank))
                for which, piece in enumerate(self._pieces(chunk, rank, flat_BsW)):
                    landed[which].append((route.heads(chunk, rank, self.counts[which]), piece))
        return [_assemble(pieces, count) for pieces, count in zip(landed, self.counts, strict=True)]

    def _measure(self, xs: Sequence[Tensor], tokens: int) -> None:
        self.rows, self.tokens, self.widths = xs[0].shape[0], tokens, tuple(x.shape[3] for x in xs)

    def _width(self, chunk: int, rank: int) -> int:
        """Numbers per token of the heads of `rank`."""
        return sum(
            len(self.route.heads(chunk, rank, count)) * width
            for count, width in zip(self.counts, self.widths, strict=True)
        )

    def _elements(self, chunk: int, rank: int) -> int:
        return self.rows * self.tokens * self._width(chunk, rank)

    def _pack(self, messages: Sequence[Sequence[Tensor]]) -> tuple[Tensor, list[int]]:
        """One flat tensor of all messages, each of (B, n, s, D) pieces, and their sizes. Heads of a token together."""
        outgoing = [sum(piece.numel() for piece in message) for message in messages]
        sent = messages[0][0].new_empty(sum(outgoing))
        for message, part in zip(messages, sent.split(outgoing), strict=True):
            sizes = [piece.shape[1] * piece.shape[3] for piece in message]
            places = part.view(self.rows, self.tokens, sum(sizes)).split(sizes, dim=-1)
            for piece, place in zip(message, places, strict=True):
                _copy_(place.unflatten(-1, piece.shape[1::2]), piece.transpose(1, 2))
        return sent, outgoing

    def _launch(self, chunk: int, sent: Tensor, outgoing: list[int], incoming: list[int]) -> None:
        """Start the collective of a chunk, which sends and brings so many numbers to and from each rank."""
        received = sent.new_empty(sum(incoming))
        work = dist.all_to_all_single(received, sent, incoming, outgoing, group=self.route.group, async_op=True)
        self.flights[chunk] = work, received, incoming, sent

    def _land(self, chunk: int) -> tuple[Tensor, list[int]]:
        """What the collective of a chunk brought, and how it is cut by rank."""
        work, received, sizes, _ = self.flights.pop(chunk)
        work.wait()
        return received, sizes

    def _pieces(self, chunk: int, rank: int, flat_BSW: Tensor) -> list[Tensor]:
        """The tensors of a message that went to or came from `rank`, (B, n, S, D) views."""
        counts = [len(self.route.heads(chunk, rank, count)) for count in self.counts]
        sizes = [n * width for n, width in zip(counts, self.widths, strict=True)]
        return [
            part.unflatten(-1, (n, width)).transpose(1, 2)
            for part, n, width in zip(flat_BSW.split(sizes, dim=-1), counts, self.widths, strict=True)
        ]


def cross_to_heads(crossing: Crossing, xs_BNsD: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Start all chunks; a token for each, which `arrive` takes."""
    return _SendHeads.apply(crossing, *xs_BNsD)  # pyright: ignore[reportReturnType]


def arrive(crossing: Crossing, chunk: int, token: Tensor) -> tuple[Tensor, ...]:
    """Wait for a chunk: its tensors, (B, n, S, D) each."""
    return _ReceiveTokens.apply(crossing, chunk, token)  # pyright: ignore[reportReturnType]


def cross_to_tokens(crossing: Crossing, chunk: int, x_BnSD: Tensor) -> Tensor:
    """Start a chunk on its way back; a token, which `assemble` takes."""
    return _SendTokens.apply(crossing, chunk, x_BnSD)  # pyright: ignore[reportReturnType]


def assemble(crossing: Crossing, tokens: Sequence[Tensor]) -> Tensor:
    """Wait for all chunks: (B, N, s, D)."""
    return _ReceiveHeads.apply(crossing, *tokens)  # pyright: ignore[reportReturnType]


# Four nodes of the autograd graph, two pairs of mirror images: the backward of each is what its mirror does forward.
# Between them travel empty tokens, which tie the graph together; what is under way is held by the crossing alone.


class _SendHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, crossing: Crossing, *xs_BNsD: Tensor) -> tuple[Tensor, ...]:
        ctx.crossing = crossing
        chunks = range(len(crossing.route.runs))
        for chunk in chunks:
            crossing.send_heads(chunk, xs_BNsD)
        return tuple(xs_BNsD[0].new_empty(0) for _ in chunks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor) -> tuple[Any, ...]:
        return None, *ctx.crossing.receive_heads()


class _ReceiveTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, crossing: Crossing, chunk: int, token: Tensor) -> tuple[Tensor, ...]:
        ctx.crossing, ctx.chunk = crossing, chunk
        return tuple(crossing.receive_tokens(chunk))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_BnSD: Tensor) -> tuple[Any, ...]:
        ctx.crossing.send_tokens(ctx.chunk, grads_BnSD)
        return None, None, grads_BnSD[0].new_zeros(0)


class _SendTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, crossing: Crossing, chunk: int, x_BnSD: Tensor) -> Tensor:
        ctx.crossing, ctx.chunk = crossing, chunk
        crossing.send_tokens(chunk, [x_BnSD])
        return x_BnSD.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Any, ...]:
        return None, None, ctx.crossing.receive_tokens(ctx.chunk)[0]


class _ReceiveHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, crossing: Crossing, *tokens: Tensor) -> Tensor:
        ctx.crossing = crossing
        return crossing.receive_heads()[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNsD: Tensor) -> tuple[Any, ...]:
        crossing = ctx.crossing
        chunks = range(len(crossing.route.runs))
        # The chunk computed last is the first whose gradient is wanted.
        for chunk in reversed(chunks):
            crossing.send_heads(chunk, [grad_BNsD])
        return None, *(grad_BNsD.new_zeros(0) for _ in chunks)


def _assemble(pieces: list[tuple[range, Tensor]], count: int) -> Tensor:
    """All `count` heads from pieces of some of them."""
    rows, _, tokens, width = pieces[0][1].shape
    shape_BsND = (rows, tokens, count, width)
    if sum(len(heads) for heads, _ in pieces) == count:
        whole_BsND = pieces[0][1].new_empty(shape_BsND)
        for heads, piece in pieces:
            _copy_(whole_BsND[:, :, _slice(heads)], piece.transpose(1, 2))
        return whole_BsND.transpose(1, 2)
    total_BsND = pieces[0][1].new_zeros(shape_BsND, dtype=torch.float32)
    for heads, piece in pieces:
        total_BsND[:, :, _slice(heads)] += piece.transpose(1, 2)
    return total_BsND.to(pieces[0][1].dtype).transpose(1, 2)


def _copy_(to: Tensor, source: Tensor) -> None:
    """Copy heads in words of 16 bytes where they lie so: torch copies what is not contiguous number by number."""
    fits = all(_in_words(x) for x in (to, source))
    to, source = (x.view(torch.complex128) if fits else x for x in (to, source))
    to.copy_(source)


def _in_words(x: Tensor) -> bool:
    size = x.element_size()
    steps = (x.shape[-1], x.storage_offset(), *x.stride()[:-1])
    return x.stride(-1) == 1 and all(step * size % 16 == 0 for step in steps) and x.data_ptr() % 16 == 0


def _slice(heads: range) -> slice:
    return slice(heads.start, heads.stop)
