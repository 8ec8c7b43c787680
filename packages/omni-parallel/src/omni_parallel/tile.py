"""Feed-forward modules in tiles of tokens (ALST, Bekman et al., 2025, arXiv:2506.13996).

Of a long row the largest activations of a block are those inside its feed-forward module, which are wider than the row
several times over. A feed-forward module treats each token alone, so it can take some tokens after others: here its
forward pass keeps nothing but its input, and its backward pass computes a tile again, and at once its gradients, so
that what is inside exists for one tile at a time.

    y_TH[a:b] = f(x_TH[a:b])        for each tile, twice: in the forward pass, and again in the backward pass
    dw = sum of dw over tiles       in fp32, rounded once

Where the block is recomputed as a whole, nothing runs a third time if its own recomputation needs no output of the
module: the node of the graph is made first and its output filled in then, and torch stops a recomputation at the last
tensor that is saved.

Dimensions: T tokens, H features, t tokens of a tile.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from omni_parallel.plan import ParallelPlan

M = TypeVar("M", bound=nn.Module)


def tile_mlps(model: M, plan: ParallelPlan) -> M:
    """The same model, whose modules in `plan.tiled` take `plan.tile` tokens at a time. Donates `model`.

    Names of modules and parameters stay. Each of these modules takes one tensor, whose last dim is of features, gives
    one of its shape and dtype, and draws no random numbers. A parameter gets its gradient once, so that sharding sums
    it over ranks once. After `apply_fp8` and before `recompute_blocks` and `shard_fsdp`.

    Raises:
        ValueError: in the forward pass, if a module gives another shape or dtype than it takes.
    """
    for name in plan.tiled:
        module = model.get_submodule(name)
        module.forward = partial(_forward, module, Tiles(module.forward, plan.tile))
    return model


@dataclass(frozen=True, slots=True)
class Tiles:
    """A function of tokens, and how many of them it takes at a time."""

    f: Callable[[Tensor], Tensor]
    size: int

    def cut(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Which tokens a tile has, and the tile: with as many dims as `x`. Of no tokens there is one tile."""
        x_TH = x.flatten(0, -2)
        for start in range(0, max(len(x_TH), 1), self.size):
            x_tH = x_TH[start : start + self.size]
            yield slice(start, start + self.size), x_tH.view(*[1] * (x.ndim - 2), *x_tH.shape)


def _forward(module: nn.Module, tiles: Tiles, *args: Tensor, **kwargs: Tensor) -> Tensor:
    (x,) = (*args, *kwargs.values())
    out: Any = _Tiled.apply(tiles, module, x, *_learning(module))
    # Only now: a recomputation that has no use for it has stopped.
    _fill_(out.detach(), tiles, x.detach())
    return out


@torch.no_grad()
def _fill_(out: Tensor, tiles: Tiles, x: Tensor) -> None:
    out_TH = out.view(-1, out.shape[-1])
    for where, tile in tiles.cut(x):
        made = tiles.f(tile)
        if (made.shape, made.dtype) != (tile.shape, tile.dtype):
            raise ValueError(
                f"a module in tiles takes {list(tile.shape)} in {tile.dtype} and gives {list(made.shape)} in "
                f"{made.dtype}: only what keeps shape and dtype can be tiled; leave it out of the plan."
            )
        out_TH[where] = made.flatten(0, -2)


class _Tiled(torch.autograd.Function):
    """What `_fill_` is going to fill."""

    @staticmethod
    def forward(ctx: Any, tiles: Tiles, module: nn.Module, x: Tensor, *params: Tensor) -> Tensor:
        # Of parameters the objects in the module are used; saved, they are known not to have changed.
        ctx.save_for_backward(x, *params)
        ctx.tiles, ctx.module = tiles, module
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, params, tiles = ctx.saved_tensors[0].detach(), _learning(ctx.module), ctx.tiles
        wants_x = ctx.needs_input_grad[2]
        d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device) if wants_x else None
        sums: list[Tensor | None] = [None] * len(params)
        for (where, tile), (_, d_tile) in zip(tiles.cut(x), tiles.cut(grads[0]), strict=True):
            with torch.enable_grad():
                made = tiles.f(tile.requires_grad_(wants_x))
            wanted = [*([tile] if wants_x else ()), *params]
            found = list(torch.autograd.grad(made, wanted, d_tile, allow_unused=True))
            if d_x is not None:
                d_tile_x = found.pop(0)
                d_x.view(-1, d_x.shape[-1])[where] = 0 if d_tile_x is None else d_tile_x.flatten(0, -2)
            sums = [_add(total, grad) for total, grad in zip(sums, found, strict=True)]
            del made, found  # Gone before the next tile is made.
        return None, None, d_x, *_narrow(sums, params)


def _learning(module: nn.Module) -> list[nn.Parameter]:
    return [param for param in module.parameters() if param.requires_grad]


def _add(total: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """Their sum, in fp32 or wider. Donates `total`."""
    if grad is None:
        return total
    # A copy, as what autograd gives for one parameter may be what it gives for another.
    wide = torch.promote_types(grad.dtype, torch.float32)
    return grad.to(wide, copy=True) if total is None else total.add_(grad)


def _narrow(sums: Sequence[Tensor | None], params: Sequence[nn.Parameter]) -> list[Tensor | None]:
    return [None if total is None else total.to(param.dtype) for total, param in zip(sums, params, strict=True)]
