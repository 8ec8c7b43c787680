"""Telling of steps. On a GPU each is told while the next one runs: to read a number is to wait for the device, which
then has nothing to do until the host has the next step ready."""

import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from about import tell_about
from decision import Decision
from measures import Known, tell_perplexity, tell_step
from mfu import peak_of
from redact import without_secrets
from request import Config
from sources import short_names
from step import HEARD, DataTold
from torch import Tensor
from tracking import EVAL, Track, untracked
from watch import (
    ODD,
    append_row,
    check_skips,
    eval_line,
    find_lost,
    odd_lines,
    peak_memory_gb,
    progress_line,
    say,
    skip_line,
    what_stands,
)

from omni_data import Cursor, cursor_to_json
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
    known: Known
    cursor: Cursor
    """Of this rank, after it."""
    end: Mark


class Reporter:
    """Keeps the last step that was noted, and tells of it when the next is noted, when asked, or, if its numbers are
    there, when an error ends the run: they may say what it comes from."""

    def __init__(
        self,
        config: Config,
        run: Decision,
        world: World,
        *,
        first: int,
        about: Mapping[str, Any] = MappingProxyType({}),
        track: Track = untracked,
    ) -> None:
        """`first` is the step that the run stands at, `about` what the checkpoint there says of it, and `track` is told
        each row that is written."""
        self.config, self.run, self.world, self.first, self.track = config, run, world, first, track
        self.a_step, self.peak = run.batch * config.seq_len, peak_of(world.device, run.dtype)
        self.frozen = bool(config.lora.rank)
        self.flops_full = flops_per_token(run.facts, config.seq_len, causal=False, frozen=self.frozen)
        self.before = about.get("tokens", first * self.a_step)
        self.names = short_names([part.source.name for part in run.parts])
        self.noted: Noted | None = None
        self.began, self.last = time.perf_counter(), Mark(world.device)
        self.values: dict[str, float] = {}
        self.asked_to_leave = self.asked_to_save = False
        self.skips, self.tokens, self.best = 0, 0, about.get("best")
        self.odd = Counter[str]()
        self.evaluated: dict[str, Any] = {}

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
        cursor: Cursor,
        data: DataTold,
    ) -> None:
        """Note a step that was launched. Effect: tells of the one before; on a CPU of this one.

        Args:
            step: counted from one.
            metrics: scalars by name, on any device.
            loads: tokens that chose each expert, by layer.
            cursor: of this rank, after it.
            data: what is told of its data.
        """
        known = Known(
            lr=self.run.schedule(step - 1),
            tokens=self.a_step,
            tokens_so_far=self.before + (step - self.first) * self.a_step,
            waited=data.waited,
            ranks=self.world.size,
            flops=flops_per_token(self.run.facts, data.reach, frozen=self.frozen),
            flops_full=self.flops_full,
            peak=self.peak,
        )
        noted = Noted(step, send_home(metrics), send_home(loads), known, cursor, Mark(self.world.device))
        self.tell()
        self.noted = noted
        if data.last and self.world.rank == 0:
            say(f"The data ends with step {step}.")
        if self.world.device.type == "cpu":
            self.tell()

    def tell(self) -> None:
        """Tell of the step that is noted, if one is. Effect: waits for its numbers; writes on the first rank.

        All ranks tell of the same steps, and know the same after it: `values`, whether steps are being skipped, and
        what any of them was asked by a signal.

        Raises:
            FloatingPointError: if it is the last of so many steps in a row whose numbers are not finite.
        """
        if self.noted is None:
            return
        noted, self.noted = self.noted, None
        seconds, self.last = noted.end.seconds_since(self.last), noted.end
        values = {name: value.item() for name, value in noted.metrics.items()}
        heard = {name: values.pop(name) for name in HEARD if name in values}
        self.asked_to_leave |= heard.get("asked_to_leave", 0) > 0
        self.asked_to_save |= heard.get("asked_to_save", 0) > 0
        odd = dict(self.odd)
        values |= self._tell_data(heard) | self._name_sources(values)
        self.values, self.tokens = values, noted.known.tokens_so_far
        if lost := find_lost(values):
            self._tell_skip(noted, lost)
            return
        self.skips = 0
        if not self.config.eval.data:
            self._note_best(values["loss"], noted.step)
        memory = peak_memory_gb(self.world.device)
        values |= self._tell_towers(heard, seconds)
        row = tell_step(noted.step, values, noted.known, seconds=seconds, memory_gb=memory, loads=noted.loads)
        if self.world.rank == 0:
            append_row(self.config.out / "metrics.jsonl", row)
            self.track(row, "")
            pace = (time.perf_counter() - self.began) / (noted.step - self.first)
            line = progress_line(row, self.config.steps, pace)
            say(*odd_lines(noted.step, odd, self.odd), line)

    def _tell_data(self, heard: Mapping[str, float]) -> dict[str, float]:
        """The share of positions that are no padding; and what was read otherwise than as it is, of the whole run here.

        Ranks that share rows count what they read alike: it is divided among them.
        """
        if not heard:
            return {}
        sharing = self.world.size / self.run.spec.dp
        for name in ODD:
            self.odd[name] += round(heard[name] / sharing)
        odd = {f"documents_{name}": count for name, count in self.odd.items() if count}
        return {"fill": heard["fill"] / self.world.size, **odd}

    def _tell_towers(self, heard: Mapping[str, float], seconds: float) -> dict[str, float]:
        """The speed of towers over the whole step: forward, and backward if they are trained."""
        passes = 1 if "tower" in self.run.frozen else 3
        flops = passes * heard.get("encoding", 0.0)
        return {"tower_tflops_per_rank": flops / seconds / self.world.size / 1e12} if flops else {}

    def _name_sources(self, values: dict[str, float]) -> dict[str, float]:
        """The loss of each source that was in the step, by its name; taken out of `values`, as are the losses of
        decoders that had no target."""
        for name in [name for name in values if name.startswith("loss_of_") and math.isnan(values[name])]:
            del values[name]
        losses = {name: values.pop(f"loss_of_{i}", math.nan) for i, name in enumerate(self.names)}
        return {f"loss/{name}": loss for name, loss in losses.items() if not math.isnan(loss)}

    def is_time_to_evaluate(self, step: int, *, last: bool) -> bool:
        """Whether something is held out, and should be read after `step`: it is its turn, or the run ends for good, as
        it does with the `last` of its data."""
        ends = last or step in (self.config.steps, self.config.stop_after)
        return bool(self.run.held_out) and (ends or step % self.config.eval.every == 0)

    def note_eval(self, step: int, values: Mapping[str, float]) -> None:
        """Note what was measured after `step` of what is held out. Effect: as `tell`; its time is not of a step."""
        self.tell()
        self.evaluated = {"step": step, **values, **tell_perplexity(values)}
        self._note_best(values["loss"], step)
        if self.world.rank == 0:
            append_row(self.config.out / "eval.jsonl", self.evaluated)
            self.track(self.evaluated, EVAL)
            say(eval_line(self.evaluated, self.config.steps))
        self.skip_time()

    def _note_best(self, loss: float, step: int) -> None:
        if math.isfinite(loss) and (self.best is None or loss < self.best["loss"]):
            self.best = {"loss": loss, "step": step}

    def is_asked(self) -> bool:
        """Whether a rank was asked, by a signal, for a checkpoint: for this one now, or for a last one."""
        asked, self.asked_to_save = self.asked_to_save or self.asked_to_leave, False
        return asked

    def is_good(self) -> bool:
        """Tell of the step that is noted, and whether its numbers were finite, so that it may be saved."""
        self.tell()
        return not self.skips

    def check_end(self, *, saved: bool) -> None:
        """Raises `FloatingPointError` if the last steps of the run were skipped, and so not saved."""
        if not saved:
            raise FloatingPointError(
                f"the last {self.skips} steps were skipped, and nothing of them is saved: {what_stands(self.config)}. "
                f"See {self.config.out / 'skipped.jsonl'}."
            )

    def about(self, step: int) -> dict[str, Any]:
        """What the checkpoint of `step` says of the run as it was last told."""
        fresh = self.evaluated.get("step") == step
        metrics = self.values | ({"eval_loss": self.evaluated["loss"]} if fresh else {})
        return tell_about(self.config, self.run, tokens=self.tokens, metrics=metrics, best=self.best)

    def _tell_skip(self, noted: Noted, lost: list[str]) -> None:
        self.skips += 1
        path = self.config.out / "skipped.jsonl"
        if self.world.rank == 0:
            values = {name: value if math.isfinite(value) else str(value) for name, value in self.values.items()}
            append_row(path, {"step": noted.step, **values, "cursor": cursor_to_json(noted.cursor)})
            say(skip_line(noted.step, lost, self.skips, self.config.max_skips))
        replay = without_secrets(shlex.join(["uv", "run", *sys.argv, "--stop-after", str(noted.step)]))
        check_skips(noted.step, lost, self.skips, self.config, replay=replay, cursor=path)

    def skip_time(self) -> None:
        """Leave what was done since the last step was told, which was no step, out of the time of the next."""
        self.last = Mark(self.world.device)


def send_home(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` as they are now, on the host, once the device got to the end of what it is asked for until now."""
    return {
        name: torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(tensor, non_blocking=True)
        for name, tensor in tensors.items()
    }
