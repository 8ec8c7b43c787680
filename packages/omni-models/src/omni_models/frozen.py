"""Parameters that are left as they are, by patterns of their names."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def freeze_params(model: M, patterns: Sequence[str]) -> M:
    """The same model, in which parameters whose names one of `patterns` matches are not trained. Donates `model`.

    Args:
        model: also on the meta device, before `shard_fsdp`.
        patterns: regular expressions for a part of a name: `visual`, `^model.layers.[0-3].`.

    Raises:
        ValueError: with all of `freeze_problems`.
    """
    if problems := freeze_problems(model, patterns):
        raise ValueError("\n".join(problems))
    for name, param in model.named_parameters():
        if any(re.search(pattern, name) for pattern in patterns):
            param.requires_grad_(False)
    return model


def freeze_problems(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Why these patterns cannot be followed, in words; empty if they can. Pure."""
    names = [name for name, _ in model.named_parameters()]
    parts = list(dict.fromkeys(part for name in names for part in name.split(".") if not part.isdigit()))
    problems, frozen = [], set[str]()
    for pattern in patterns:
        try:
            found = {name for name in names if re.search(pattern, name)}
        except re.error as error:
            problems.append(f"freeze {pattern} is no regular expression: {error}.")
            continue
        if not found:
            near = get_close_matches(pattern, parts, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Parts of names are {', '.join(parts)}."
            problems.append(f"freeze {pattern} is in no name of a parameter.{hint}")
        frozen |= found
    if not problems and patterns and all(name in frozen for name, p in model.named_parameters() if p.requires_grad):
        problems.append(f"freeze {' '.join(patterns)} leaves nothing to train: leave some of it out.")
    return problems


def cast_frozen(model: M, dtype: torch.dtype) -> M:
    """The same model, whose frozen parameters of floats are held in `dtype`. Donates `model`.

    Before `shard_fsdp`, which casts them to the dtype of compute whenever they are used: held in it, they give the same
    numbers, in half the memory. Those that are trained stay as they are.
    """
    for param in model.parameters():
        if not param.requires_grad and param.is_floating_point():
            param.data = param.data.to(dtype)
    return model
