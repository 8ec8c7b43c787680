"""What of a model a run trains: all of it, adapters beside it, or all but what is frozen."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from adapters import ADAPTERS
from request import Config
from transformers import PreTrainedModel

from omni_models import (
    ModelFacts,
    add_lora,
    cast_frozen,
    freeze_params,
    freeze_problems,
    lora_problems,
    save_adapter_config,
)
from omni_models.lora import find_targets


def adapt(config: Config, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same model, which trains what `config` says. Donates `model`.

    What is frozen beside adapters is held in `dtype`, of compute: checkpoints do not hold it.
    """
    model = freeze_params(add_lora(model, config.lora), config.freeze)
    return cast_frozen(model, dtype) if config.lora.rank else model


def lay_out(
    problems: list[str], config: Config, model: PreTrainedModel, facts: ModelFacts, *, saves: bool
) -> PreTrainedModel:
    """A model like `model`, on the meta device, that trains what `config` says; itself, if that is all, or if
    it cannot, and then why goes to `problems`. Pure, but looks whether peft is installed."""
    wrong = adapt_problems(config, model, facts, saves=saves)
    problems += wrong
    if wrong or not (config.lora.rank or config.freeze):
        return model
    return adapt(config, copy.deepcopy(model), torch.float32)


def adapt_problems(config: Config, model: PreTrainedModel, facts: ModelFacts, *, saves: bool) -> list[str]:
    """Why such a model cannot be trained as `config` says, in words. Pure, but looks whether peft is installed."""
    lora, problems = config.lora, []
    wrong = lora_problems(model, lora)
    problems += [f"--{problem}" if problem.startswith("lora.") else problem for problem in wrong]
    problems += [f"--{problem}" for problem in freeze_problems(model, config.freeze)]
    if not lora.rank:
        return problems
    if config.freeze:
        problems.append("--freeze with --lora.rank: adapters alone are trained already. Leave one of them out.")
    if saves and not config.weights:
        problems.append(
            f"--lora.rank {lora.rank} trains adapters of weights that are there, and these would be random: name "
            "--weights."
        )
    if config.balance.rate:
        problems.append(
            f"--balance.rate {config.balance.rate} moves biases of routers, which adapters do not hold: leave it out."
        )
    if config.tile_mlp and lora.dropout and not wrong:
        inside = [name for name in find_targets(model, lora.targets) if name.startswith(tuple(facts.mlps))]
        if inside:
            problems.append(
                f"--lora.dropout {lora.dropout} draws random numbers in {inside[0]}, and what --tile-mlp computes "
                "again must draw none: leave one of them out."
            )
    return problems


def find_other_base(config: Config, found: Path, flags: Mapping[str, Any]) -> list[str]:
    """Why the adapters of checkpoint `found`, whose run had these `flags`, cannot go on, in words. Pure."""
    before = flags.get("weights")
    if config.keeps_frozen() or before in (None, config.weights):
        return []
    return [
        f"{found} has adapters of --weights {before}, and no more than these; beside --weights {config.weights} they "
        "would mean something else. Name the same, or another --out to start anew."
    ]


def tell_trained(config: Config, model: PreTrainedModel) -> str:
    """What of `model`, laid out, is trained, in words; nothing if all is. Pure."""
    trained = sum(param.numel() for param in model.parameters() if param.requires_grad)
    total = sum(param.numel() for param in model.parameters())
    if trained == total:
        return ""
    lora = config.lora
    saved = f" and {', '.join(lora.save)}" if lora.save else ""
    how = f"adapters of rank {lora.rank}, alpha {lora.alpha:g}{saved}: " if lora.rank else ""
    return f"{how}{trained:,} of {total:,} parameters"


def write_adapters(config: Config, model: PreTrainedModel) -> None:
    """Write beside the configuration of the model what adapters it has, if it has any. Effect: writes, or deletes what
    an earlier run has left."""
    if config.lora.rank:
        assert config.weights
        save_adapter_config(model, config.out / "model", base=config.weights)
    else:
        (config.out / "model" / ADAPTERS).unlink(missing_ok=True)
