"""Telling of steps, each while the next one runs: to read a number is to wait for the device, which then has nothing to
do until the host has the next step ready."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from decide import Decision
from request import Config
from torch import Tensor
from watch import append_row, check_finite, peak_memory_gb, progress_line, tell_step

from omni_mesh import World
from omni_models import flops_per_token


@dataclass(frozen=True, slots=True)
class Noted:
    """A step whose numbers may still be on their way."""

    step: int
    metrics: Callable[[], Mapping[str, Tensor]]
    loads: Callable[[], Mapping[str, Tensor]]
    known: Mapping[str, Any]
    """What `tell_step` needs to know of it beside them."""


class Reporter:
    """Keeps the last step that was noted, and tells of it when the next is noted, or when asked."""

    def __init__(self, config: Config, run: Decision, world: World, *, first: int) -> None:
        self.config, self.run, self.world, self.first = config, run, world, first
        self.noted: Noted | None = None
        self.started = self.told_at = time.perf_counter()

    def note(
        self,
        step: int,
        metrics: Mapping[str, Tensor],
        loads: Mapping[str, Tensor],
        *,
        lr: float,
        rows: int,
        reach: float,
        waited: float,
    ) -> None:
        """Note a step that was launched. Effect: tells of the one before.

        Args:
            step: counted from one.
            metrics: scalars by name, on any device.
            loads: tokens that chose each expert, by layer.
            lr: learning rate of the step.
            rows: read until then.
            reach: tokens that a token attends to, at most, on average.
            waited: seconds until its data was on its way to the device.
        """
        known = {
            "lr": lr,
            "tokens": self.run.batch * self.config.seq_len,
            "tokens_so_far": rows * self.config.seq_len,
            "waited": waited,
            "ranks": self.world.size,
            "flops": flops_per_token(self.run.facts, reach),
        }
        noted = Noted(step, to_host(metrics), to_host(loads), known)
        self.tell()
        self.noted = noted

    def tell(self) -> None:
        """Tell of the step that is noted, if one is. Effect: waits for its numbers; writes on the first rank.

        Raises:
            FloatingPointError: if one of them is not finite.
        """
        if self.noted is None:
            return
        noted, self.noted = self.noted, None
        values = {name: value.item() for name, value in noted.metrics().items()}
        check_finite(noted.step, values)
        now = time.perf_counter()
        memory = peak_memory_gb(self.world.device)
        seconds = now - self.told_at
        row = tell_step(noted.step, values, seconds=seconds, memory_gb=memory, loads=noted.loads(), **noted.known)
        self.told_at = now
        if self.world.rank == 0:
            append_row(self.config.out / "metrics.jsonl", row)
            pace = (now - self.started) / (noted.step - self.first)
            print(progress_line(row, self.config.steps, pace), flush=True)

    def skip_time(self) -> None:
        """Leave what was done since the last step was told, which was no step, out of the time of the next."""
        self.told_at = time.perf_counter()


def to_host(tensors: Mapping[str, Tensor]) -> Callable[[], Mapping[str, Tensor]]:
    """`tensors` as they are now, on the host. Begins to copy; what comes back waits for it when called."""
    if all(tensor.device.type == "cpu" for tensor in tensors.values()):
        return partial(dict, {name: tensor.clone() for name, tensor in tensors.items()})
    # An event waits for these copies alone; whatever reads a number by itself waits for all that was launched since.
    copies = {
        name: torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
        for name, tensor in tensors.items()
    }
    event = torch.cuda.Event()
    event.record()

    def read() -> Mapping[str, Tensor]:
        event.synchronize()
        return copies

    return read
