"""One step of training, in three functions: rows to tensors, what their attention costs, tensors to gradients."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from omni_data import Batch, document_bounds, shard_sequence
from omni_models import count_targets, summed_loss
from omni_parallel import global_sum

Loss = Literal["auto", "chunked", "full"]


def place(batch: Batch, vocab_size: int, device: torch.device, *, part: int = 0, parts: int = 1) -> dict[str, Any]:
    """`batch` on `device`, as the arguments of a model and its labels. Raises `ValueError` on a token without a row.

    The rows are whole, which `apply_ulysses` cuts; of the labels, shifted already, it is the `part`-th of `parts`.
    """
    if (largest := int(batch.tokens_BS.max())) >= vocab_size:
        raise ValueError(f"the data has token id {largest}, but the model has embeddings for {vocab_size} only.")
    cu_seqlens, longest = document_bounds(batch.segments_BS)
    arrays = {
        "input_ids": batch.tokens_BS,
        "position_ids": batch.positions_BS,
        "labels_Bs": shard_sequence(batch.labels_BS, part, parts),
        "cu_seqlens": cu_seqlens,
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if device.type == "cuda":
        tensors = {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
    return {**tensors, "max_seqlen": longest}


def mean_reach(batch: Batch) -> float:
    """Tokens of the document that a token of `batch` is in, on average: what attention costs. Pure."""
    lengths = np.diff(document_bounds(batch.segments_BS)[0]).astype(float)
    return float((lengths**2).sum() / lengths.sum())


def accumulate_grads_(
    model: PreTrainedModel, micro: Sequence[dict[str, Any]], loss: Literal["auto", "chunked", "full"]
) -> dict[str, Tensor]:
    """Add to `model` the gradient of the mean loss (nats) over every target of every rank and microbatch."""
    targets = global_sum(torch.stack([count_targets(inputs["labels_Bs"]) for inputs in micro]).sum())
    shares = targets.clamp(min=1)  # A step without a target has a loss of zero, not of nothing.
    total = torch.zeros((), device=targets.device)
    for inputs in micro:
        labels_Bs = inputs.pop("labels_Bs")
        part = summed_loss(model, inputs, labels_Bs, impl=loss) / shares
        part.backward()
        total += part.detach()
    return {"loss": global_sum(total), "targets": targets}
