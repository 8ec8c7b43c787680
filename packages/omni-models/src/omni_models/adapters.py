"""What adapters of a model are once they are there: how they start, how plain `peft` calls them, and how they become
part of the weights that they are beside.

`peft` puts a module around each that it adapts, `base_layer` inside it, and around each that is trained whole,
`original_module` inside it beside the copy that is trained. These are found by what they hold, so that nobody who has
no adapters needs peft.
"""

from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from omni_models.initial import instead, seeded
from omni_models.shares import local, share

M = TypeVar("M", bound=PreTrainedModel)
ADAPTER: Final = "default"
"""How peft calls the one adapter that a model has here."""


def adapters_of(model: nn.Module) -> dict[str, Any]:
    """The modules of peft around linear layers, by name. Pure."""
    return {name: module for name, module in model.named_modules() if "lora_A" in module._modules}


def saved_of(model: nn.Module) -> dict[str, Any]:
    """The modules of peft around what is trained whole, by name. Pure."""
    return {name: module for name, module in model.named_modules() if "modules_to_save" in module._modules}


@torch.no_grad()
def fill_adapters_(model: PreTrainedModel, seed: int) -> None:
    """Set all that is trained to where it starts, each adapter by a seed of its own: numbers do not depend on how
    parameters are shared out. What is trained whole starts as what it is a copy of, which has its weights already."""
    for name, module in adapters_of(model).items():
        owners = [(part, "weight", part.weight) for part in (module.lora_A[ADAPTER], module.lora_B[ADAPTER])]
        whole = {id(p): torch.empty(p.shape, dtype=p.dtype, device=p.device) for *_, p in owners}
        with instead(owners, whole), seeded(seed, name, model.device):
            module.reset_lora_parameters(ADAPTER, True)
        for *_, param in owners:
            local(param).copy_(share(whole[id(param)], param))
    for module in saved_of(model).values():
        own, copied = module.modules_to_save[ADAPTER], module.original_module
        for mine, theirs in zip(own.parameters(), copied.parameters(), strict=True):
            local(mine).copy_(local(theirs))
        for mine, theirs in zip(own.buffers(), copied.buffers(), strict=True):
            mine.copy_(theirs)


def save_adapter_config(model: PreTrainedModel, directory: Path, *, base: str) -> Path:
    """The directory, which now tells plain peft what adapters `model` has. Effect: writes a json file.

    Args:
        model: with adapters; on any device.
        directory: made if it does not exist.
        base: the directory or hub name of the weights that they are trained on.
    """
    config = copy(model.peft_config[ADAPTER])  # pyright: ignore[reportAttributeAccessIssue]
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(str(directory))
    return directory


def read_adapters(model: M, directory: Path) -> M:
    """The same model with adapters as `directory` describes them, which `save_adapter_config` wrote. Donates `model`.

    Args:
        model: without adapters, also on the meta device; where it is elsewhere, `fill_weights` gives adapters memory.
        directory: with an adapter_config.json.
    """
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(directory))
    config.inference_mode = False
    return inject_adapters(model, config)


def inject_adapters(model: M, config: Any) -> M:
    """The same model with adapters of peft's `config`, which have no memory yet. Donates `model`."""
    from peft import inject_adapter_in_model

    # Nothing is drawn for what has no memory.
    inject_adapter_in_model(config, model, adapter_name=ADAPTER, low_cpu_mem_usage=True)
    return model.train(model.training)


def is_taken_for_experts(model: PreTrainedModel, name: str) -> bool:
    """Whether peft takes a target of this name for weights of experts, which were linear layers once. A linear
    layer of that name then gets no adapter. Pure."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # One of two that were made one.
        return True
    return name not in (config.target_modules or ())


def peft_keys(model: PreTrainedModel) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """A pure function from whole tensors by our names to what is trained by the names of files of plain peft.

    Args:
        model: with adapters; also on the meta device; it is not changed.
    """
    from peft.utils import get_peft_model_state_dict

    def to_peft(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = get_peft_model_state_dict(model, dict(tensors), ADAPTER, save_embedding_layers=False)
        # What plain peft puts around a whole model.
        return {f"base_model.model.{name}": tensor for name, tensor in found.items()}

    return to_peft


@torch.no_grad()
def merge_adapters(model: M) -> M:
    """The same model without adapters, whose weights have taken them up. Donates `model`.

    Args:
        model: with adapters and all its weights on one device, not sharded.
    """
    for name, module in adapters_of(model).items():
        module.merge(safe_merge=False)
        model.set_submodule(name, module.base_layer)
    for name, module in saved_of(model).items():
        model.set_submodule(name, module.modules_to_save[ADAPTER])
    del model.peft_config
    return model
