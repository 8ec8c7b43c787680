"""What is known of a step, by the names that metrics.jsonl and eval.jsonl have for it: docs/watching.md lists them all,
with their units. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from mfu import tell_mfu
from torch import Tensor

from omni_models.losses import TEXT

MOST_LOSS: Final = 700.0
"""Of which e to its power is a number still."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a step before its numbers are there."""

    lr: float
    tokens: int
    """Of this step, of all ranks together."""
    tokens_so_far: int
    """Of all steps."""
    waited: float
    """Seconds until its data was on the device."""
    ranks: int
    """Of the world."""
    flops: float
    """Floating-point operations of a token."""
    flops_full: float
    """The same, as if it saw all of its row."""
    peak: float | None
    """Of a rank, 10^12 floating-point operations a second; None if it is not known."""


def tell_step(
    step: int,
    values: Mapping[str, float],
    known: Known,
    *,
    seconds: float,
    memory_gb: float,
    loads: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Everything that is known of a step, by name.

    Args:
        step: counted from one.
        values: `loss` (nats a target), `targets`, `grad_norm`, and what else there is; of towers what they computed.
        known: of it before.
        seconds: of the whole step, data wait included.
        memory_gb: peak of this rank, 10^9 bytes.
        loads: by layer, the tokens of all ranks that chose each expert (E,); empty without experts.
    """
    speed = known.tokens / seconds
    tflops, tflops_full = (each * speed / known.ranks / 1e12 for each in (known.flops, known.flops_full))
    towers = values.get("tower_tflops_per_rank", 0.0)
    return {
        "step": step,
        **values,
        **tell_perplexity(values),
        "lr": known.lr,
        "tokens": known.tokens_so_far,
        "seconds": seconds,
        "data_seconds": known.waited,
        "tokens_per_second": speed,
        "tokens_per_second_per_rank": speed / known.ranks,
        "tflops_per_rank": tflops,
        **tell_mfu(tflops + towers, tflops_full + towers, known.peak),
        "memory_gb": memory_gb,
        **tell_loads(loads),
    }


def tell_perplexity(values: Mapping[str, float]) -> dict[str, float]:
    """e to the power of the loss of text, which is the loss of a model without decoders; nothing if it is beyond all
    numbers.

    >>> tell_perplexity({"loss": 0.0}), tell_perplexity({"loss": 9.0, "loss_of_text": 0.0})
    ({'perplexity': 1.0}, {'perplexity': 1.0})
    >>> tell_perplexity({"loss": 1e9})
    {}
    """
    loss = values.get(f"loss_of_{TEXT}", values["loss"])
    return {"perplexity": math.exp(loss)} if loss < MOST_LOSS else {}


def tell_loads(loads: Mapping[str, Tensor]) -> dict[str, Any]:
    """How busy experts were, of the tokens that chose each by layer; nothing for a model without experts.

    `expert_load` is the load of each expert over all layers, `expert_load_max` that of the busiest expert of any layer,
    both in units of the mean: 1 is perfect balance.
    """
    if not loads:
        return {}
    loads_LE = torch.stack(list(loads.values())).double()
    mean_E = loads_LE.mean(0)
    most = (loads_LE / loads_LE.mean(1, keepdim=True).clamp(min=1)).max().item()
    return {
        "expert_load_max": round(most, 4),
        "expert_load": [round(load, 4) for load in (mean_E / mean_E.mean().clamp(min=1)).tolist()],
    }
