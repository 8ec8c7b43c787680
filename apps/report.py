"""Telling of steps. On a GPU each is told while the next one runs: to read a number is to wait for the device, which
then has nothing to do until the host has the next step ready."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from decide import Decision
from request import Config
from torch import Tensor
from watch import append_row, check_finite, peak_memory_gb, progress_line, tell_step

from omni_mesh import World
from omni_models import flops_per_token


class Mark:
    """A moment in the work of a device, which for a GPU is when it gets there, not when the host has asked for it."""

    def __init__(self, device: torch.device) -> None:
        self.event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        self.time = time.perf_counter()
        if self.event:
            self.event.record()

    def is_past(self) -> bool:
        """Whether the device got there."""
        return self.event is None or self.event.query()

    def seconds_since(self, other: "Mark") -> float:
        """Between the two. Effect: waits for this one."""
        if self.event is None or other.event is None:
            return self.time - other.time
        self.event.synchronize()
        return other.event.elapsed_time(self.event) / 1e3


@dataclass(frozen=True, slots=True)
class Noted:
    """A step whose numbers may still be on their way to the host."""

    step: int
    metrics: Mapping[str, Tensor]
    loads: Mapping[str, Tensor]
    known: Mapping[str, Any]
    """What `tell_step` needs to know of it beside them."""
    end: Mark


class Reporter:
    """Keeps the last step that was noted, and tells of it when the next is noted, when asked, or, if its numbers are
    there, when an error ends the run: they may say what it comes from."""

    def __init__(self, config: Config, run: Decision, world: World, *, first: int) -> None:
        self.config, self.run, self.world, self.first = config, run, world, first
        self.noted: Noted | None = None
        self.began, self.last = time.perf_counter(), Mark(world.device)

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: Any) -> None:
        if kind is not None and self.noted is not None and self.noted.end.is_past():
            self.tell()

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
        """Note a step that was launched. Effect: tells of the one before; on a CPU of this one.

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
        noted = Noted(step, send_home(metrics), send_home(loads), known, Mark(self.world.device))
        self.tell()
        self.noted = noted
        if self.world.device.type == "cpu":
            self.tell()

    def tell(self) -> None:
        """Tell of the step that is noted, if one is. Effect: waits for its numbers; writes on the first rank.

        Raises:
            FloatingPointError: if one of them is not finite.
        """
        if self.noted is None:
            return
        noted, self.noted = self.noted, None
        seconds, self.last = noted.end.seconds_since(self.last), noted.end
        values = {name: value.item() for name, value in noted.metrics.items()}
        check_finite(noted.step, values)
        memory = peak_memory_gb(self.world.device)
        row = tell_step(noted.step, values, seconds=seconds, memory_gb=memory, loads=noted.loads, **noted.known)
        if self.world.rank == 0:
            append_row(self.config.out / "metrics.jsonl", row)
            pace = (time.perf_counter() - self.began) / (noted.step - self.first)
            print(progress_line(row, self.config.steps, pace), flush=True)

    def skip_time(self) -> None:
        """Leave what was done since the last step was told, which was no step, out of the time of the next."""
        self.last = Mark(self.world.device)


def send_home(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` as they are now, on the host, once the device got to the end of what it is asked for until now."""
    return {
        name: torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(tensor, non_blocking=True)
        for name, tensor in tensors.items()
    }
