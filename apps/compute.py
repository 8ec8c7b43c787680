"""How a model is computed here: its attention, experts and loss, by name, and what is wrong with what was asked for.

Pure, but for looking at the GPU and for what is installed.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from request import Config
from transformers import PreTrainedModel

from omni_mesh import MeshSpec
from omni_models import (
    ModelFacts,
    attention_problems,
    balance_problems,
    choose_attention,
    choose_experts,
    choose_loss,
    describe,
    experts_problems,
    loss_problems,
)
from omni_parallel import ParallelPlan, fp8_problems, has_shared_experts

GATHERED_BYTES: Final = 2 << 30
"""Most bytes of parameters of all blocks that stay gathered unasked."""


@dataclass(frozen=True, slots=True)
class Compute:
    """What computes a model, by name."""

    attention: str
    experts: str
    linear: Literal["plain", "fp8"]
    loss: Literal["auto", "chunked", "full"]


def choose_dtype(config: Config) -> tuple[str, torch.dtype]:
    """The type of device, and the dtype of compute. Effect: asks for GPUs."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    auto = torch.bfloat16 if device == "cuda" else torch.float32
    return device, auto if config.dtype == "auto" else getattr(torch, config.dtype)


def choose_compute(
    config: Config, model: PreTrainedModel, device: str, dtype: torch.dtype, *, ep: int, images: bool = False
) -> tuple[Compute, list[str]]:
    """What computes `model`, where `config` leaves it open the fastest that is exact; and what is wrong, in words."""
    attention = (
        choose_attention(model, device, dtype, images=images) if config.attention == "auto" else config.attention
    )
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
    if config.recompute.kept and attention == "flex":
        problems.append(
            f"recompute {config.recompute.kept} watches each operator, and torch compiles nothing that is "
            "watched, as flex attention has to be: choose another --attention, or keep nothing."
        )
    problems += attention_problems(model, attention, device, dtype, images=images) + loss_problems(model, loss)
    problems += experts_problems(model, experts, dtype, ep=ep if facts.experts else 1)
    problems += balance_problems(model, config.balance)
    if config.compile and config.linear == "fp8":
        problems.append(
            "compile with linear=fp8: layers that share an input know it by being the same tensor, which a compiler "
            "does not see. Leave one of them out."
        )
    if config.linear == "fp8":
        capability = torch.cuda.get_device_capability() if device == "cuda" else None
        problems += fp8_problems(device, capability, model, ParallelPlan(facts.blocks))
    if facts.experts and facts.experts_per_token > facts.num_experts:
        problems.append(
            f"num_experts_per_tok={facts.experts_per_token} chooses more experts than the {facts.num_experts} there "
            "are: lower it in the configuration."
        )
    return Compute(attention, experts, config.linear, loss), problems


def choose_gathered(config: Config, facts: ModelFacts, spec: MeshSpec, device: str, dtype: torch.dtype) -> bool:
    """Whether parameters of blocks stay gathered between the forward and the backward pass. Pure.

    To gather them again saves what all blocks take together, and costs time of the host and of links: where `config`
    leaves it open, they stay on GPUs if that is less than `GATHERED_BYTES`, on any GPU, since all ranks have to agree.
    """
    # Experts that are whole on one rank are never gathered; others are, in their blocks or by themselves.
    alone = spec.ep > 1 and not has_shared_experts(spec)
    blocks = len(facts.blocks) * facts.block_params if alone or not facts.experts else facts.num_params
    small = device == "cuda" and blocks * dtype.itemsize < GATHERED_BYTES
    return small if config.keep_gathered is None else config.keep_gathered
