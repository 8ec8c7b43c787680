"""What modules were before they were sharded: FSDP2 derives a class of its own from that of each module it shards, and
transformers knows models by the names of their classes. Pure."""

from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class that the module had before it was sharded."""
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


def plain_view(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same names, configurations and tensors, whose modules have their plain classes.

    It is there to be looked at: its hooks are those of the sharded modules.
    """
    view = _view(model, {})
    assert isinstance(view, PreTrainedModel)
    return view


def _view(module: nn.Module, seen: dict[int, nn.Module]) -> nn.Module:
    if id(module) not in seen:
        kind = plain_class(module)
        view = seen[id(module)] = kind.__new__(kind)
        view.__dict__.update(module.__dict__)
        view.__dict__["_modules"] = {
            name: None if child is None else _view(child, seen) for name, child in module._modules.items()
        }
    return seen[id(module)]
