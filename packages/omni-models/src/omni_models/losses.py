"""The losses of a composed model: that of text, and that of each decoder, each the mean over its own targets.

As that of text alone they are sums on each rank; the caller divides by the number of targets of the whole world.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig

from omni_models.loss import count_targets, loss_and_output
from omni_models.omni import OmniModel
from omni_models.parts import decoder_specs
from omni_models.targets import Routed

TEXT = "text"
"""What the loss of text is called among those of decoders."""


def decoder_arguments(routed: Mapping[str, Routed], device: torch.device) -> dict[str, Any]:
    """What a composed model is called with for its decoders, of what `route_targets` gives, on `device`."""

    def to(array: Any) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    return {
        "decoder_inputs": {name: to(each.inputs) for name, each in routed.items()},
        "decoder_targets": {name: (to(e.places_F), to(e.targets), to(e.keys_F)) for name, e in routed.items()},
    }


def summed_losses(
    model: OmniModel,
    inputs: Mapping[str, Any],
    labels_Bs: Tensor,
    *,
    impl: Literal["auto", "chunked", "full"] = "auto",
    each_Bs: Tensor | None = None,
) -> dict[str, Tensor]:
    """By "text" and by decoder: the loss summed over its targets. Scalars, fp32.

    Args:
        model: sharded or not.
        inputs: arguments of `model(...)`, with those of `decoder_arguments`.
        labels_Bs: of text, as for `summed_loss`: -100 where the next token stands for an output of a decoder.
        impl: likewise.
        each_Bs: likewise, of text.

    Raises:
        ValueError: as `summed_loss` and the model do, or if decoders are told nothing.
    """
    if len(model.decoders) and inputs.get("decoder_targets") is None:
        raise ValueError(
            f"the decoders {', '.join(model.decoders)} are told nothing: call with what decoder_arguments gives, also "
            "where there is no target."
        )
    text, output = loss_and_output(model, inputs, labels_Bs, impl, each_Bs)
    return {TEXT: text, **(output.losses or {})}


def count_losses(inputs: Mapping[str, Any], labels_Bs: Tensor) -> dict[str, Tensor]:
    """By "text" and by decoder: how many targets this rank has. Scalars, int64, no host synchronisation."""
    targets = inputs.get("decoder_targets") or {}
    counts = {name: labels_Bs.new_full((), len(places_F)) for name, (places_F, _, _) in targets.items()}
    return {TEXT: count_targets(labels_Bs), **counts}


def loss_weights(config: PreTrainedConfig) -> dict[str, float]:
    """By "text" and by decoder: how much its mean loss counts; of a model that is not composed, that of text. Pure."""
    return {TEXT: 1.0, **{name: spec.weight for name, spec in decoder_specs(config).items()}}


def mean_loss(sums: Mapping[str, Tensor], counts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of mean losses, of which this rank has a part. Scalar, fp32. Pure.

    Args:
        sums: as `summed_losses` gives them.
        counts: targets of all ranks and microbatches; what has none adds nothing.
        weights: of each.
    """
    return torch.stack([weights[name] * part / counts[name].clamp(min=1) for name, part in sums.items()]).sum()
