"""Out to the hub: the names and layouts that plain transformers expects, and whoever else reads such checkpoints."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor
from transformers import PreTrainedModel

from omni_models.classes import without_adapters
from omni_models.layout import Shape, find_pieces
from omni_models.weights import loadable


def hf_keys(
    model: PreTrainedModel, *, like: Mapping[str, Shape] = MappingProxyType({})
) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """A pure function from whole tensors by our names to tensors by the hub's names, experts one by one.

    Every tensor it gives is a view of the one that it is a part of. It takes any subset of the model's tensors, so that
    a merge can go through them file by file, and gives the names that transformers' own `save_pretrained` writes.

    Args:
        model: also on the meta device; it is not changed. Of one with adapters, what is around them.
        like: the tensors of a directory, shapes by name, in whose layout to write where transformers reads several.

    Raises:
        ValueError: if checkpoints of this type are not views of its parameters; of the function, if it is given a
            tensor that the model has not.
    """
    model = without_adapters(model)
    pieces = find_pieces(model, {name: tuple(tensor.shape) for name, tensor in loadable(model).items()}, stored=like)

    def to_hf(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if strange := [name for name in tensors if name not in pieces]:
            raise ValueError(f"{type(model).__name__} has no tensor {strange[0]}, which the checkpoint holds.")
        return {piece.name: piece.view(tensors[name].contiguous()) for name in tensors for piece in pieces[name]}

    return to_hf
