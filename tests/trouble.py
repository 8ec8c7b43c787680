"""Runs of the app in which something happens to one rank: run on ranks by `test_trouble.py`."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pretrain
import resume
import torch
import torch.distributed as dist
from request import Config
from torch import nn
from training import train

from omni_ckpt import At, Point, flatten, save_dcp
from omni_mesh import Requests, heed_signals, watchdog
from omni_parallel import state_tree


def train_with(config: Config, happens: Mapping[int, tuple[int, str]]) -> dict[str, Any]:
    """The metrics of a run in which at some steps (counted from one) something happens to one rank.

    It is a signal by name, or "nan" or "inf": a gradient that is not finite. Also tells of which steps the update left
    all of the state as it was.
    """
    whole, step, alike = pretrain.accumulate_grads_, [0], dict[int, bool]()
    update = pretrain.update

    def accumulate_grads_(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        step[0] = pretrain_step(model)
        result = whole(model, *args, **kwargs)
        rank, what = happens.get(step[0], (-1, ""))
        if rank == dist.get_rank():
            if what in ("nan", "inf"):
                local(next(p.grad for p in model.parameters() if p.grad is not None)).fill_(float(what))
            else:
                os.kill(os.getpid(), getattr(signal, what))
                while what not in noted:  # By a thread.
                    time.sleep(0.001)
        return result

    def pretrain_step(model: nn.Module) -> int:
        model.steps_begun = getattr(model, "steps_begun", first[0]) + 1  # pyright: ignore[reportAttributeAccessIssue]
        return model.steps_begun  # pyright: ignore[reportReturnType]

    @contextmanager
    def heed_and_keep() -> Iterator[Requests]:
        with heed_signals() as requests:
            note = requests.note

            def note_and_tell(number: int) -> None:
                note(number)
                noted.append(signal.Signals(number).name)

            requests.note = note_and_tell
            yield requests

    first, noted = [0], list[str]()
    load_run = pretrain.load_run

    def load_and_count(*args: Any) -> Any:
        loaded = load_run(*args)
        first[0] = loaded[0].step
        return loaded

    def update_and_compare(state: Any, *args: Any, **kwargs: Any) -> Any:
        before = {name: tensor.clone() for name, tensor in flatten(state_tree(state))[0].items()}
        state = update(state, *args, **kwargs)
        after = flatten(state_tree(state))[0]
        alike[step[0]] = all(torch.equal(local(after[name]), local(tensor)) for name, tensor in before.items())
        return state

    mine = {"accumulate_grads_": accumulate_grads_, "load_run": load_and_count, "update": update_and_compare}
    with swapped(pretrain, heed_signals=heed_and_keep, **mine):
        rows = train(config)
    return {"rows": rows, "alike": [number for number, same in alike.items() if same]}


def train_and_copy(config: Config, copy: Path) -> list[dict[str, float]]:
    """The metrics of a run whose state, as it was loaded and before any step, is saved as `copy`."""
    make_room = pretrain.Keeper.make_room

    def copy_and_make_room(self: Any, state: Any, cursor: Any) -> None:
        save_dcp({"state": state_tree(state)}, copy)
        make_room(self, state, cursor)

    pretrain.Keeper.make_room = copy_and_make_room
    try:
        return train(config)
    finally:
        pretrain.Keeper.make_room = make_room


def freeze(config: Config, where: str, rank: int, errors: Path, *, start_s: float = 600, save_s: float = 600) -> None:
    """A run in which `rank` stops for good: as it loads ("load"), before a step (its number), or at a point of a save.

    Args:
        config: of the run; `timeout_s` is how long a step may take.
        where: it stops.
        rank: that stops.
        errors: a folder for what each rank says on stderr, and a file `stopped` of that moment.
        start_s: how long loading may take.
        save_s: how long a save may take.
    """
    me = int(os.environ["RANK"])
    os.dup2(os.open(errors / str(me), os.O_CREAT | os.O_WRONLY), 2)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)

    def stop(*args: Any) -> None:
        if me == rank:
            (errors / "stopped").touch()
            os.kill(os.getpid(), signal.SIGSTOP)

    def stop_at(point: Point, path: Path) -> None:
        if point == where:
            stop()

    def stop_and_load(*args: Any) -> Any:
        stop()
        return load_run(*args)

    def stop_and_seed(seed: int, step: int, rank: int) -> None:
        if str(step) == where:
            stop()
        seed_all_(seed, step, rank)

    load_run, seed_all_ = pretrain.load_run, pretrain.seed_all_
    mine: dict[str, Any] = {"START_S": start_s, "seed_all_": stop_and_seed}
    if where == "load":
        mine["load_run"] = stop_and_load
    elif not where.isdecimal():
        mine["Keeper"] = partial(pretrain.Keeper, at=stop_at)
    with (
        swapped(pretrain, **mine),
        swapped(resume, SAVE_S=save_s),
        swapped(watchdog, _ANSWER_S=1.0),
    ):
        train(config)


def train_slowly_saving(config: Config, seconds: float) -> list[dict[str, float]]:
    """The metrics of a run of which each save takes so long on rank 1."""

    delayed: set[Path] = set()

    def delay(point: Point, path: Path) -> None:
        if (point, dist.get_rank()) == ("writing", 1) and path not in delayed:  # It comes before each piece.
            delayed.add(path)
            time.sleep(seconds)

    late: At = delay
    with swapped(pretrain, Keeper=partial(pretrain.Keeper, at=late)):
        return train(config)


@contextmanager
def swapped(module: Any, **others: Any) -> Iterator[None]:
    """While open, these names of `module` stand for others."""
    kept = {name: getattr(module, name) for name in others}
    for name, other in others.items():
        setattr(module, name, other)
    try:
        yield
    finally:
        for name, own in kept.items():
            setattr(module, name, own)


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportCallIssue]
