"""Runs of the app in which something happens to one rank: run on ranks by `test_trouble.py`."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pretrain
import torch
import torch.distributed as dist
from request import Config
from torch import nn
from training import train

from omni_ckpt import flatten, save_dcp
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
        return result

    def pretrain_step(model: nn.Module) -> int:
        model.steps_begun = getattr(model, "steps_begun", first[0]) + 1  # pyright: ignore[reportAttributeAccessIssue]
        return model.steps_begun  # pyright: ignore[reportReturnType]

    first = [0]
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

    swapped: dict[str, Callable[..., Any]] = {
        "accumulate_grads_": accumulate_grads_,
        "load_run": load_and_count,
        "update": update_and_compare,
    }
    kept = {name: getattr(pretrain, name) for name in swapped}
    for name, function in swapped.items():
        setattr(pretrain, name, function)
    try:
        rows = train(config)
    finally:
        for name, function in kept.items():
            setattr(pretrain, name, function)
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


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportCallIssue]
