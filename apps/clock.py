"""How long encoders of media take in a step, forward and backward, as the device sees it.

A backward pass ends with the encoders, which come before all else in the model: theirs lasts from when gradients of
features arrive until it has ended.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from omni_models import map_encoders

Mark = Any
"""A moment: a number of seconds, or an event of a GPU."""


class Clock:
    """Spans of time of each step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps: list[list[tuple[Mark, Mark]]] = [[]]
        """The last of which is under way."""
        self.inside = False
        """Whether an encoder is being called: one may call another."""

    def mark(self) -> Mark:
        """A moment: on a GPU, when it has done what it was asked for before."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def note(self, begin: Mark) -> None:
        """Note a span from `begin` until now."""
        self.steps[-1].append((begin, self.mark()))

    def end_step(self) -> None:
        """What is noted from now on is of the next step."""
        self.steps.append([])

    def seconds(self) -> list[float]:
        """Of each step that has ended, all spans together. Effect: waits for a GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return [sum(_between(begin, end) for begin, end in spans) for spans in self.steps[:-1]]


def clock_encoders(model: PreTrainedModel, clock: Clock) -> PreTrainedModel:
    """The same model, whose encoders are timed by `clock`, what they exchange with other ranks too. Donates `model`."""
    return map_encoders(model, partial(_timed, clock))


def _timed(clock: Clock, kind: str, encode: Callable[..., Any], replace: Callable[..., Any]) -> Callable[..., Any]:
    def encode_timed(*args: Any, **kwargs: Any) -> Any:
        if clock.inside:
            return encode(*args, **kwargs)
        clock.inside, begin = True, clock.mark()
        try:
            found = encode(*args, **kwargs)
        finally:
            clock.inside = False
        clock.note(begin)
        return replace(found, lambda features_FX: _Arrival.apply(features_FX, clock))

    return encode_timed


class _Arrival(torch.autograd.Function):
    """The same features; when their gradient comes, the backward pass of encoders begins."""

    @staticmethod
    def forward(ctx: Any, features_FX: Tensor, clock: Clock) -> Tensor:
        ctx.clock = clock
        return features_FX.view_as(features_FX)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        begin = ctx.clock.mark()
        # As FSDP2 does it: torch has no public name for it.
        torch.autograd.Variable._execution_engine.queue_callback(lambda: ctx.clock.note(begin))
        return grads[0], None


def _between(begin: Mark, end: Mark) -> float:
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1e3
