"""Which kernel computes which part of a model, and why no other does, in words."""

import torch
from transformers import PreTrainedModel

from omni_models.choose import ASKED_FOR, BACKENDS, attention_problems, choose_attention
from omni_models.experts import choose_experts, experts_problems, is_experts
from omni_models.facts import describe
from omni_models.kernels import describe_kernels
from omni_models.loss import choose_loss, loss_problems
from omni_models.proofs import looks_like_mlp, looks_like_norm
from omni_models.token_wise import describe_mlps


def explain(
    model: PreTrainedModel, *, device_type: str, dtype: torch.dtype, capability: tuple[int, int] | None = None
) -> dict[str, tuple[str, ...]]:
    """By part of the model what computes it where nothing else is asked for, and why not otherwise, a line each.

    The parts are "attention", "experts" (if there are any) and "loss", of which the first line is a name; "kernels",
    whether the fused ones run there at all, and by class of module what fits "norms", "gates" and "rotations"; and
    "tiles", whether feed-forward modules treat each token alone, so that they can take some after others. Pure, but
    looks at what is installed, and at the GPU of this machine.

    Args:
        model: as `build_model` gives it, also on the meta device.
        device_type: where it will run.
        dtype: of compute.
        capability: of a GPU that is not here, major and minor; left out, it is that of this machine.

    Raises:
        ValueError: as `describe`.
    """
    facts = describe(model)
    attention = choose_attention(model, device_type, dtype, capability=capability)
    told = {"attention": (attention,)}
    for name in (*BACKENDS, *ASKED_FOR):
        if name != attention:
            problems = attention_problems(model, name, device_type, dtype, capability=capability)
            fits = "and is taken if asked for" if name in ASKED_FOR else "and slower"
            told["attention"] += tuple(_not(name, problems) or [f"{name} would be as exact, {fits}"])
    if facts.experts:
        told["experts"] = (choose_experts(model, dtype), *_not("grouped", experts_problems(model, "grouped", dtype)))
    told["loss"] = (choose_loss(model), *_not("chunked", loss_problems(model, "chunked")))
    words = describe_kernels(model, device_type=device_type)
    nowhere = words.pop("triton", "")
    told["kernels"] = (f"none: {nowhere}", "these would fit:") if nowhere else ("fused where they fit:",)
    parts: dict[str, tuple[str, ...]] = {"norms": (), "gates": (), "rotations": ()}
    for kind, what in words.items():
        parts[_part(model, kind)] += (f"{kind}: {what}",)
    tiles = describe_mlps(model, facts.blocks)
    parts["tiles"] = tuple(f"{kind}: {what}" for kind, what in tiles.items())
    return told | {part: lines or ("nothing that looks like it",) for part, lines in parts.items()}


def _not(name: str, problems: list[str]) -> list[str]:
    return [f"not {name}: {problem}" for problem in problems]


def _part(model: PreTrainedModel, kind: str) -> str:
    """Which part of the model the modules of a class are."""
    module = next(module for module in model.modules() if type(module).__name__ == kind)
    if looks_like_norm(module):
        return "norms"
    return "gates" if is_experts(module) or looks_like_mlp(module) else "rotations"
