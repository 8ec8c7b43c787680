"""How a model is computed here: its attention, experts and loss, by name, and what is wrong with what was asked for.

Pure, but for looking at the GPU and for what is installed.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from request import Config
from transformers import PreTrainedModel

from omni_models import (
    attention_problems,
    balance_problems,
    choose_attention,
    choose_experts,
    choose_loss,
    describe,
    experts_problems,
    loss_problems,
)


@dataclass(frozen=True, slots=True)
class Compute:
    """What computes a model, by name."""

    attention: str
    experts: str
    loss: Literal["auto", "chunked", "full"]


def choose_compute(
    config: Config, model: PreTrainedModel, device: str, dtype: torch.dtype, *, ep: int
) -> tuple[Compute, list[str]]:
    """What computes `model`, where `config` leaves it open the fastest that is exact; and what is wrong, in words."""
    attention = choose_attention(model, device, dtype) if config.attention == "auto" else config.attention
    loss = choose_loss(model) if config.loss == "auto" else config.loss
    facts = describe(model)
    # Spread experts are grouped; if they cannot be, that is told. Whether there are any is told by the plan.
    own = choose_experts(model, dtype) if ep == 1 or not facts.experts else "grouped"
    experts = own if config.experts == "auto" else config.experts
    problems = []
    if config.recompute.keep == "attention" and attention == "eager":
        problems.append(
            "recompute keep=attention keeps what attention kernels give, and eager attention is no kernel: "
            "choose another --attention, or keep matmuls or nothing."
        )
    problems += attention_problems(model, attention, device, dtype) + loss_problems(model, loss)
    problems += experts_problems(model, experts, dtype, ep=ep if facts.experts else 1)
    problems += balance_problems(model, config.balance)
    if facts.experts and facts.experts_per_token > facts.num_experts:
        problems.append(
            f"num_experts_per_tok={facts.experts_per_token} chooses more experts than the {facts.num_experts} there "
            "are: lower it in the configuration."
        )
    return Compute(attention, experts, loss), problems
