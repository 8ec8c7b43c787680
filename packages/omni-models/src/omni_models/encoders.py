"""Where a model has media encoded: the functions that transformers' models call to have features of them.

Every model with images calls `get_image_features` of its own, those with films and sounds `get_video_features` and
`get_audio_features`. What they return has several forms: features of each medium, or of all, and of some towers more of
them, from layers below, for the first layers of the decoder.

Dimensions: F features, X numbers in each.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from omni_models.sized import encode_sized

M = TypeVar("M", bound=PreTrainedModel)
EncodeFn = Callable[..., Any]
Replace = Callable[[Any, Callable[[Tensor], Tensor]], Any]
"""From what an encoder returned, and a function of (F, X) features, to the same with those that it gives."""

KINDS: Final = ("image", "video", "audio")
_FIELDS: Final = ("pooler_output", "last_hidden_state")
"""Where features are, of which the first that there is counts."""
_DEEP: Final = "deepstack_features"


def encoder_kinds(model: PreTrainedModel) -> tuple[str, ...]:
    """The kinds of media that `model` encodes. Pure."""
    return tuple(kind for kind in KINDS if _find_owner(model, kind) is not None)


def map_encoders(model: M, f: Callable[[str, EncodeFn, Replace], EncodeFn]) -> M:
    """The same model, whose encoder `e` of each kind of media is now `f(kind, e, replace)`. Donates `model`.

    Args:
        model: any model of transformers.
        f: `e` is called as the model calls it, and may be given `sizes` beside, see `omni_models.sized`.
            `replace(output, g)` puts g(features) in the place of the features in what an encoder returned; those of
            layers below go through g with them, side by side.

    Raises:
        ValueError: if the model encodes no media.
    """
    kinds = encoder_kinds(model)
    if not kinds:
        raise ValueError(
            f"{type(model).__name__} has no encoder of images, films or sounds that it calls by a name of its own "
            f"({', '.join(f'get_{kind}_features' for kind in KINDS)}): leave its media where they are."
        )
    for kind in kinds:
        owner = _find_owner(model, kind)
        name = f"get_{kind}_features"
        encode = partial(encode_sized, owner, kind, getattr(owner, name))
        setattr(owner, name, f(kind, encode, replace_features))
    return model


def replace_features(output: Any, g: Callable[[Tensor], Tensor]) -> Any:
    """`output` with g(features) in the place of its features. Donates `output`.

    Raises:
        ValueError: if it has none where features are looked for.
    """
    name = next((name for name in _FIELDS if getattr(output, name, None) is not None), None)
    if name is None:
        raise ValueError(f"what an encoder returned, {type(output).__name__}, has none of {', '.join(_FIELDS)}.")
    own = getattr(output, name)
    deep = getattr(output, _DEEP, None) or ()
    were = (own, *deep)
    parts = [_flat(each) for each in were]
    widths = [part.shape[1] for part in parts]
    # Without others they are no view: models return them, and units of sharding should not return views.
    taken = g(torch.cat(parts, dim=1)).split(widths, dim=1) if deep else [g(parts[0])]
    shaped = [(part,) if isinstance(was, tuple | list) else part for part, was in zip(taken, were, strict=True)]
    # Towers of sounds have the same features under both names, and models read either.
    for each in (each for each in _FIELDS if getattr(output, each, None) is own):
        setattr(output, each, shaped[0])
    if deep:
        setattr(output, _DEEP, list(shaped[1:]))
    return output


def _flat(features: Tensor | tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """(F, X), of one tensor or one for each medium."""
    each = [features] if isinstance(features, Tensor) else list(features)
    return torch.cat([part.flatten(0, -2) for part in each])


def _find_owner(model: nn.Module, kind: str) -> nn.Module | None:
    """The innermost module that has media of that kind encoded: those around it ask it."""
    name = f"get_{kind}_features"
    having = [module for module in model.modules() if hasattr(type(module), name)]
    return having[-1] if having else None
