"""What modules were before they were sharded or given adapters. Pure.

FSDP2 derives a class of its own from that of each module it shards, and transformers knows models by the names of their
classes; `peft` puts a module of its own around each that it adapts, and transformers knows tensors by their names.
"""

from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class that the module had before it was sharded."""
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


def plain_view(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same names, configurations and tensors, whose modules have their plain classes, without adapters.

    It is there to be looked at: its hooks are those of the sharded modules. Modules share their tensors with it, also
    if others are put in their place.
    """
    view = _view(model, {})
    assert isinstance(view, PreTrainedModel)
    return view


def without_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """`model`, or if it has adapters a view of it that has none: see `plain_view`."""
    return plain_view(model) if any(adapted(module) is not None for module in model.modules()) else model


def called(module: nn.Module) -> nn.Module:
    """What is called in place of `module`: the copy of it that is trained, if there is one."""
    copies = module._modules.get("modules_to_save")
    return module if copies is None else next(copies.children())


def adapted(module: nn.Module) -> nn.Module | None:
    """What `module` is around, if that is a module with adapters or a copy that is trained in its place."""
    base = module._modules.get("base_layer") if "lora_A" in module._modules else None
    return module._modules.get("original_module") if "modules_to_save" in module._modules else base


def _view(module: nn.Module, seen: dict[int, nn.Module]) -> nn.Module:
    module = adapted(module) or module
    if id(module) not in seen:
        kind = plain_class(module)
        view = seen[id(module)] = kind.__new__(kind)
        view.__dict__.update(module.__dict__)
        view.__dict__["_modules"] = {
            name: None if child is None else _view(child, seen) for name, child in module._modules.items()
        }
    return seen[id(module)]
