"""Runs of the app that look at how its checkpoints are kept: run on ranks by `test_keeper.py` and `test_resume.py`."""

import io
import os
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from typing import Any

import pretrain
import torch.distributed as dist
from request import Config
from storage import add_storage
from training import train
from trouble import local, swapped

from omni_ckpt import Fault, latest


def train_in_storage(config: Config) -> list[dict[str, float]]:
    """The metrics of a run that may write to URLs of `storage.py`."""
    add_storage()
    return train(config)


def train_and_tell(config: Config, fault: Fault) -> tuple[list[dict[str, float]], str]:
    """The metrics of a run in which something goes wrong with each save, and what it says on stderr."""
    with redirect_stderr(io.StringIO()) as told, swapped(pretrain, Keeper=partial(pretrain.Keeper, at=fault)):
        return train(config), told.getvalue()


def train_and_look(config: Config) -> tuple[list[dict[str, float]], list[bool]]:
    """The metrics of a run, and whether its input and output embeddings are one parameter, with one memory: once all is
    loaded, and at the end."""
    models: list[Any] = []
    tied: list[bool] = []

    def look() -> None:
        first, last = models[0].get_input_embeddings().weight, models[0].get_output_embeddings().weight
        tied.append(first is last and local(first).data_ptr() == local(last).data_ptr())

    class Looking(pretrain.Keeper):
        def make_room(self, state: Any, *args: Any) -> str:
            models.append(state.model)
            look()
            return super().make_room(state, *args)

    with swapped(pretrain, Keeper=Looking):
        rows = train(config)
    look()
    return rows, tied


def lose_the_place(config: Config, after: int) -> None:
    """A run that loses what it claimed once the checkpoint of a step is saved."""

    def lost() -> None:
        raise ValueError("it is lost")

    class Losing(pretrain.Keeper):
        def save(self, state: Any, *args: Any) -> None:
            self.checks += [lost] if state.step > after else []
            super().save(state, *args)

    with swapped(pretrain, Keeper=Losing):
        train(config)


def fail_to_save(config: Config) -> tuple[str, int]:
    """What a run says whose saves fail in the background, and how many steps it had begun then."""
    begun: list[int] = []

    def note(step: int) -> None:
        begun.append(step)
        wait_for_save()

    try:
        with swapped(pretrain, Keeper=partial(pretrain.Keeper, at=Fault("writing", 0, "full"))):
            train_noting(config, note)
    except OSError as error:
        return "\n".join([str(error), *error.__notes__]), len(begun)
    raise AssertionError("nothing was said")


def leave_while_saving(config: Config, fails_at: int | None) -> tuple[str, str, list[str]]:
    """How a run ends that leaves, or fails before a step, while a slow save is under way; the newest checkpoint then,
    and the threads that save."""

    def fail(step: int) -> None:
        if step == fails_at:
            raise RuntimeError("of the step")

    end = "well"
    try:
        with swapped(pretrain, Keeper=partial(pretrain.Keeper, at=Fault("begun", 0, "slow"))):
            train_noting(config, fail)
    except RuntimeError as error:
        end = str(error)
    found = latest(config.out)
    return end, found.name if found else "", [name for name in thread_names() if name == "omni-save"]


def count_what_is_held(config: Config) -> dict[int, tuple[int, int, int]]:
    """Open files, threads and process groups before each step of a run, while nothing is being saved."""
    held: dict[int, tuple[int, int, int]] = {}

    def note(step: int) -> None:
        wait_for_save()
        files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  A path would open one, too.
        held[step] = (files, threading.active_count(), len(dist.distributed_c10d._world.pg_map))

    train_noting(config, note)
    return held


def train_noting(config: Config, note: Callable[[int], None]) -> None:
    """A run that calls `note` with each step before it begins."""
    seed_all_ = pretrain.seed_all_

    def note_and_seed(seed: int, step: int, rank: int) -> Any:
        note(step)
        return seed_all_(seed, step, rank)

    with swapped(pretrain, seed_all_=note_and_seed):
        train(config)


def wait_for_save() -> None:
    until = time.monotonic() + 60
    while "omni-save" in thread_names():
        assert time.monotonic() < until
        time.sleep(0.01)


def thread_names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]
