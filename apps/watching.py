"""Looking at some steps of a run: whatever looks begins before the first of them and ends after the last, in a loop
that knows nothing of it, on an error and where data end."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from typing import TypeVar

import torch
from timeline import DATA, STEP
from torch.profiler import ProfilerActivity, profile, record_function

T = TypeVar("T")


@contextmanager
def watch_steps(
    steps: range, look: Callable[[], AbstractContextManager[object]], *, at: int
) -> Iterator[Callable[[Iterator[T]], Iterator[T]]]:
    """A function of what each step takes, which gives the same, and has `look` open for `steps`.

    Between two items lies a step. Leaving ends what is open: an error is raised inside `look`, as it is here. Each
    step is a span of its name in a profile, and so is the wait for its data.

    Args:
        steps: that are looked at, counted from one.
        look: opened before the first of them waits for its data, and closed after the last.
        at: the step that the run stands at.
    """
    with ExitStack() as whole, ExitStack() as one:

        def watched(items: Iterator[T]) -> Iterator[T]:
            for step in count(at + 1):
                one.close()
                if steps and step == steps.stop:
                    whole.close()
                if steps and step == steps.start:
                    whole.enter_context(look())
                with record_function(f"{DATA} {step}") if step in steps else ExitStack():
                    item = next(items, None)
                if item is None:
                    return
                if step in steps:
                    one.enter_context(record_function(f"{STEP} {step}"))
                yield item

        yield watched


@contextmanager
def profiled(device: torch.device, *, memory: bool = False) -> Iterator[profile]:
    """While open, profile what this process and its `device` do, and with `memory` what operators allocate.

    Effect: waits for the device at both ends, but after an error.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    wait_for(device)
    with profile(activities=activities, profile_memory=memory, acc_events=True) as profiler:
        yield profiler
        wait_for(device)


def wait_for(device: torch.device) -> None:
    """Effect: waits until `device` has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
