"""Encoders called for the media of any rank, and features that come to the ranks whose tokens stand for them.

What a rank owns is sent to who encodes it before the model is called (`send_media`); when the model has its encoder
called, features are swapped in one all-to-all, whose backward pass is the way back. So each patch is encoded once, no
rank holds features that it has no tokens for, and all ranks call an encoder if one of them has something for it: units
of sharding in it are then gathered and summed by all.

Dimensions: F features that a rank makes, G that it takes, X numbers in each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from omni_parallel.across import exchange
from omni_parallel.door import WHOLE
from omni_parallel.media import Medium, Route, route_media
from omni_parallel.reduce import gather_objects

M = TypeVar("M", bound=nn.Module)
EncodeFn = Callable[..., Any]
"""What a model calls to have media encoded."""
OverEncoders = Callable[[Any, Callable[[str, EncodeFn, Callable[..., Any]], EncodeFn]], Any]
ROUTES = "media_routes"
"""The argument of `model(...)` that says where features go, by kind of media: it never reaches the model."""


@dataclass(frozen=True, slots=True, eq=False)
class Owned:
    """The media of one kind that a rank has, in the order of its tokens."""

    arrays: Mapping[str, Tensor]
    """By argument of the model; their rows are those of its media, one after the other."""
    media: Sequence[Medium]


def send_media(owned: Mapping[str, Owned], device: torch.device) -> tuple[dict[str, Tensor], dict[str, Route]]:
    """The media that this rank encodes, as arguments of the model, and the routes of their features, by kind.

    Kinds that no rank has are left out; of others a rank without any gets arrays all the same. Collective.

    Args:
        owned: of this rank, by kind.
        device: where arrays are sent.

    Raises:
        ValueError: if arrays of one kind are not alike on all ranks.
    """
    told = gather_objects(
        {
            kind: (tuple(own.media), tuple((n, x.dtype, tuple(x.shape[1:])) for n, x in own.arrays.items()))
            for kind, own in owned.items()
            if own.media
        }
    )
    arguments: dict[str, Tensor] = {}
    routes: dict[str, Route] = {}
    for kind in sorted({kind for each in told for kind in each}):
        looks = {each[kind][1] for each in told if kind in each}
        if len(looks) > 1:
            raise ValueError(
                f"arrays of {kind}s differ between ranks: {' and '.join(map(str, sorted(map(str, looks))))}."
            )
        (look,) = looks
        route = route_media([each.get(kind, ((), ()))[0] for each in told], dist.get_rank())
        own = owned.get(kind)
        for place, (name, dtype, shape) in enumerate(look):
            sizes = [medium.rows[place] for medium in own.media] if own and own.media else []
            rows = own.arrays[name].to(device, non_blocking=True).split(sizes) if own and sizes else ()
            sent = torch.cat([torch.empty(0, *shape, dtype=dtype, device=device), *(rows[i] for i in route.sends)])
            going = _runs([sizes[i] for i in route.sends], route.media_going)
            coming = _runs([medium.rows[place] for medium in route.encodes], route.media_coming)
            arguments[name] = exchange(sent, going, coming, dist.group.WORLD)
        routes[kind] = route
    return arguments, routes


def apply_encoders(model: M, *, over: OverEncoders) -> M:
    """The same model, whose encoders encode for all ranks of the world. Donates `model`.

    It is called with what `send_media` gives: the media to encode here, and as `media_routes` where features go.

    Args:
        model: before it is sharded.
        over: replaces what a model has media encoded by, as `omni_models.map_encoders` does. An encoder is called with
            `sizes`, of each medium that it is given, if all of them have some (`Medium.sizes`).
    """
    under = _Under()
    model = over(model, partial(_spread, under))
    model.register_forward_pre_hook(partial(_take_routes, under), with_kwargs=True)
    return model


@dataclass(slots=True)
class _Under:
    """The call of the model that is under way."""

    routes: Mapping[str, Route] = field(default_factory=dict)
    inside: bool = False
    """Whether an encoder is being called: one may call another."""


def _take_routes(under: _Under, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    under.routes = kwargs.pop(ROUTES, None) or {}
    return args, kwargs


def _spread(under: _Under, kind: str, encode: EncodeFn, replace: Callable[..., Any]) -> EncodeFn:
    """An encoder of the media that came here, whose features are those that this rank's tokens stand for."""

    def encode_across(*args: Any, **kwargs: Any) -> Any:
        if under.inside:
            return encode(*args, **kwargs)
        kwargs.pop(WHOLE, None)  # It is said of rows, to the attention of the decoder.
        route = under.routes.get(kind)
        if route is None:
            raise ValueError(f"there are {kind}s, but {ROUTES} has no way for them: call the model with both.")
        sizes = [medium.sizes for medium in route.encodes]
        told = {"sizes": sizes} if all(sizes) else {}
        under.inside = True
        try:
            found = encode(*args, **kwargs, **told)
        finally:
            under.inside = False
        return replace(found, partial(deliver, route=route, kind=kind))

    return encode_across


def deliver(made_FX: Tensor, *, route: Route, kind: str = "medium") -> Tensor:
    """The features that this rank takes, (G, X), of those that all ranks made. Differentiable. Collective.

    Raises:
        ValueError: if the encoder has not made as many as `route` says.
    """
    if len(made_FX) != (wanted := sum(medium.features for medium in route.encodes)):
        raise ValueError(f"the encoder made {len(made_FX)} features of {kind}s that {wanted} tokens stand for.")
    made_F, order_G = (_on(index, made_FX.device) for index in (route.made_F, route.order_G))
    return _Deliver.apply(made_FX, made_F, order_G, route)  # pyright: ignore[reportReturnType]


class _Deliver(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, made_FX: Tensor, made_F: Tensor, order_G: Tensor, route: Route) -> Tensor:
        ctx.save_for_backward(made_F, order_G)
        ctx.going, ctx.coming, ctx.count = list(route.going), list(route.coming), len(made_FX)
        return exchange(made_FX[made_F], ctx.going, ctx.coming, dist.group.WORLD)[order_G]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        made_F, order_G = ctx.saved_tensors
        # Each feature is taken once, so nothing is summed; what nobody takes has no gradient.
        arrived_GX = torch.empty_like(grads[0]).index_copy_(0, order_G, grads[0])
        back = exchange(arrived_GX, ctx.coming, ctx.going, dist.group.WORLD)
        return back.new_zeros(ctx.count, *back.shape[1:]).index_copy_(0, made_F, back), None, None, None


def _on(index: NDArray[np.int64], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(index)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _runs(values: Sequence[int], counts: Sequence[int]) -> list[int]:
    """The sums of so many of `values` at a time."""
    left = iter(values)
    return [sum(next(left) for _ in range(count)) for count in counts]
