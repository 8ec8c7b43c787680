"""What is decided of a measurement, and what becomes of it: a run of apps/pretrain.py that keeps nothing."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import request
import torch
from chats import chats
from decide import decide
from decision import Decision
from kinds import Kind, texts
from places import check_writable
from records import (
    ask,
    check_same,
    name_device,
    read_record,
    share_of_peak,
    summarize,
    tell_command,
    tell_making,
    tell_towers,
)
from redact import without_secrets
from refusal import attempt, refuse, told_in
from request_bench import Config
from request_chats import ChatConfig
from request_media import MediaConfig
from seen import seen
from settings import as_flags
from timeline import Timeline, account
from torch import nn

from omni_models.experts import is_experts


def decide_measured(asked: Config) -> Decision:
    """What `asked` means on machines like this one. Effect: as `decide`; asks git.

    Raises:
        ValueError: with everything that keeps the run from being measured.
    """
    problems: list[str] = []
    run = attempt(problems, decide, to_run(asked), kind=kind_of(asked), saves=False)
    problems = [one for told in problems for one in told_in(told)]
    if asked.skip < 0 or asked.profiled < 0:
        problems.append(f"--skip {asked.skip} and --profiled {asked.profiled} must be at least 0.")
    if asked.skip >= asked.run.steps:
        problems.append(f"--steps {asked.run.steps} are no more than --skip {asked.skip}: run longer, or skip fewer.")
    if asked.trace and not asked.profiled:
        problems.append(f"--trace {asked.trace} needs steps to be profiled: leave --profiled 0 out.")
    if asked.trace:
        attempt(problems, check_trace, asked.trace)
    if asked.check:
        attempt(problems, check_before, asked)
    if asked.commit is None:
        attempt(problems, ask, "git", "rev-parse", "HEAD")
    refuse(problems)
    assert run
    return run if not asked.balanced else replace(run, model=use_balanced_routers(run.model))


def kind_of(asked: Config) -> Kind:
    """What the records of `asked` are to it."""
    if asked.kind == "texts":
        return texts(asked.run.field)
    return chats(ChatConfig()) if asked.kind == "chats" else seen(ChatConfig(), MediaConfig(), asked.run.model)


def to_run(asked: Config) -> request.Config:
    """The run that is measured, with the steps that are profiled after it. Pure."""
    steps = asked.run.steps + max(0, asked.profiled)
    kept = {"save_to": None, "eval": request.EvalConfig(), "tracking": request.TrackConfig(), "profile": ()}
    return replace(asked.run, steps=steps, stop_after=None, **kept)


def record_of(asked: Config) -> Path:
    """Where the record of `asked` is. Pure."""
    return asked.to / f"{asked.name}.json"


def check_trace(trace: Path) -> None:
    """Raises `ValueError` if no file can be written at `trace`. Effect: as `check_writable`, in its folder."""
    if trace.is_dir():
        raise ValueError(f"--trace {trace} is a folder: name a file in it, {trace / 'trace.json.gz'} for example.")
    check_writable(trace.parent, "--trace")


def check_before(asked: Config) -> None:
    """Raises `ValueError` if there is nothing to compare with, or it is of something else. Effect: reads a file."""
    if asked.name is None:
        raise ValueError("--check compares with a record: give its --name.")
    if not record_of(asked).exists():
        raise ValueError(f"--check: there is no record {record_of(asked)} yet: write one first, without --check.")
    check_same({"gpu": name_device(), "command": tell_command(_argv())}, read_record(record_of(asked)))


def _argv() -> list[str]:
    """The command, with flags in place of the files that it names, which may change."""
    return [without_secrets(word) for word in (sys.argv[0], *as_flags(Config, sys.argv[1:]))]


def make_record(
    asked: Config,
    rows: Sequence[Mapping[str, Any]],
    matmul_tflops: float,
    timeline: Timeline | None,
    *,
    towers: Sequence[float] = (),
) -> dict[str, Any]:
    """What was measured, and how. Effect: asks the system.

    Args:
        asked: of the run.
        rows: of its metrics, a row a step.
        matmul_tflops: of `measure_matmul`.
        timeline: of the steps that were profiled, if any were.
        towers: seconds of towers in each step, on the first rank, if there are any.

    Raises:
        ValueError: if no step is left to measure, or none was profiled.
    """
    if timeline is not None and not timeline.steps:
        raise ValueError("the data ended before a step was profiled: give more data, fewer --steps, or --profiled 0.")
    measured = rows[: asked.run.steps]
    speeds = summarize(measured, asked.skip) | share_of_peak(measured, asked.skip, matmul_tflops)
    speeds |= tell_towers(measured, towers, asked.skip)
    seen = {} if timeline is None else {"profiled_steps": timeline.steps, **account(timeline)}
    made = tell_making(_argv(), asked.note, asked.commit or ask(*_HEAD))
    return speeds | {name: round(value, 6) for name, value in seen.items()} | made


_HEAD: Final = ("git", "rev-parse", "HEAD")


def use_balanced_routers(model: nn.Module) -> Any:
    """The same model, whose experts are chosen in turn; weights of choices stay the router's. Donates `model`."""
    for experts in filter(is_experts, model.modules()):
        experts.register_forward_pre_hook(choose_in_turn)
    return model


def choose_in_turn(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same call of experts, whose choices go round all of them."""
    x_TH, expert_TK, *rest = args
    (T, K), E = expert_TK.shape, module.num_experts
    assert isinstance(E, int)
    return x_TH, go_round(T, K, E, expert_TK.device), *rest


@cache
def go_round(T: int, K: int, E: int, device: torch.device) -> torch.Tensor:
    """Experts of each token, (T, K) int64; those of a token lie far apart, so that they are not all on one rank."""
    token_T1, apart_K = (torch.arange(n, device=device) for n in (T, K))
    return (token_T1[:, None] + apart_K * (E // K)) % E
