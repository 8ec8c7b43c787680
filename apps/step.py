"""One step of training: rows to tensors, what their attention costs, tensors to gradients, the balance of experts,
and what all ranks must agree on."""

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from decide import Decision
from torch import Tensor
from transformers import PreTrainedModel

from omni_data import Batch, Cursor, Stream, document_bounds, shard_sequence
from omni_mesh import Mesh, Requests
from omni_models import (
    balance_loss,
    count_loads,
    count_targets,
    next_biases,
    read_biases,
    record_routing,
    set_biases_,
    summed_loss,
)
from omni_parallel import clip_scale, global_sum

Loss = Literal["auto", "chunked", "full"]


@contextmanager
def rare_collections(every: int = 50) -> Iterator[Callable[[int], None]]:
    """While open, Python looks for garbage only where it is told a step, and then at each `every`-th.

    Left to itself it looks in the midst of steps, on each rank at another time, for which all others wait.
    """

    def collect_at(step: int) -> None:
        if step % every == 0:
            gc.collect()

    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield collect_at
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def seed_all_(seed: int, step: int, rank: int) -> None:
    """Seed the generators of torch, CUDA, numpy and Python for what `rank` draws in `step`.

    No generator has a state that outlives a step, so none has to be saved: a run that is continued draws what an
    unbroken one would, and on another number of ranks those that there are in both draw the same.
    """
    words = np.random.SeedSequence([seed % 2**32, step, rank]).generate_state(4)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(int(words[2]))
    random.seed(int(words[3]))


def place(batch: Batch, vocab_size: int, device: torch.device, *, part: int = 0, parts: int = 1) -> dict[str, Any]:
    """`batch` on `device`, as the arguments of a model and its labels. Raises `ValueError` on a token without a row.

    The rows are whole, which `apply_ulysses` cuts; of the labels, shifted already, it is the `part`-th of `parts`, and
    `real_T` tells which tokens of that part do not only lengthen the row.
    """
    if (largest := int(batch.tokens_BS.max())) >= vocab_size:
        raise ValueError(f"the data has token id {largest}, but the model has embeddings for {vocab_size} only.")
    cu_seqlens, longest = document_bounds(batch.segments_BS)
    arrays = {
        "input_ids": batch.tokens_BS,
        "position_ids": batch.positions_BS,
        "labels_Bs": shard_sequence(batch.labels_BS, part, parts),
        "real_T": shard_sequence(np.zeros_like(batch.labels_BS), part, parts).ravel() == 0,
        "cu_seqlens": cu_seqlens,
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if device.type == "cuda":
        tensors = {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
    return {**tensors, "max_seqlen": longest}


@dataclass(frozen=True, slots=True)
class DataTold:
    """What is told of the data of a step."""

    reach: float
    """Tokens of the document that a token is in, on average."""
    waited: float
    """Seconds until all of it was on its way to the device."""


def take_rows(
    batches: Stream[Batch], run: Decision, mesh: Mesh, device: torch.device
) -> tuple[list[dict[str, Any]], Cursor, DataTold]:
    """The next microbatches of this rank on `device`, the place in the data after them, and what is told of them."""
    began = time.perf_counter()
    micro, cursor, reach = [], Cursor(), 0.0
    for _ in range(count := run.batch // run.spec.dp // run.micro):
        batch, cursor = next(batches)
        part = mesh.tokens.get_local_rank("sp")
        micro.append(place(batch, run.facts.vocab_size, device, part=part, parts=run.spec.sp))
        reach += mean_reach(batch) / count
    return micro, cursor, DataTold(reach, time.perf_counter() - began)


def mean_reach(batch: Batch) -> float:
    """Tokens of the document that a token of `batch` is in, on average: what attention costs. Pure."""
    lengths = np.diff(document_bounds(batch.segments_BS)[0]).astype(float)
    return float((lengths**2).sum() / lengths.sum())


def accumulate_grads_(
    model: PreTrainedModel, micro: Sequence[dict[str, Any]], loss: Loss, *, balance: float = 0.0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Add to `model` the gradient of the mean loss (nats) over every target of every rank and microbatch.

    Args:
        model: sharded or not.
        micro: the arguments of the model, and what else `place` gives, of each microbatch of this rank.
        loss: how it is computed.
        balance: weight of the balance loss, which is over the tokens of all ranks, and the mean over microbatches.

    Returns:
        What was measured, by name; and by layer the tokens of all ranks that chose each expert, (E,).
    """
    targets = global_sum(torch.stack([count_targets(inputs["labels_Bs"]) for inputs in micro]).sum())
    shares = targets.clamp(min=1)  # A step without a target has a loss of zero, not of nothing.
    total, uneven = torch.zeros((), device=targets.device), torch.zeros((), device=targets.device)
    loads: list[dict[str, Tensor]] = []
    for inputs in micro:
        labels_Bs, real_T = inputs.pop("labels_Bs"), inputs.pop("real_T")
        with record_routing(model, logits=balance > 0) as routing:
            part = summed_loss(model, inputs, labels_Bs, impl=loss) / shares
        total += part.detach()
        if balance:
            logits, K = list(routing.logits.values()), next(iter(routing.chosen.values())).shape[1]
            even = balance_loss(logits, K, real_T=real_T, total=global_sum) / len(micro)
            uneven += even.detach()
            part = part + balance * even
        part.backward()
        loads.append(count_loads(routing, real_T=real_T))
    metrics = {"loss": global_sum(total), "targets": targets}
    if balance:
        metrics["balance_loss"] = global_sum(uneven)
    return metrics, sum_loads(loads)


def sum_loads(loads: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The loads of several microbatches, of all ranks together, in one collective."""
    if not loads[0]:
        return {}
    here = [torch.stack([load[name] for load in loads]).sum(0) for name in loads[0]]
    whole = global_sum(torch.cat(here)).split([len(load_E) for load_E in here])
    return dict(zip(loads[0], whole, strict=True))


def scale_or_skip(metrics: Mapping[str, Tensor], max_norm: float) -> Tensor:
    """What gradients are multiplied by, which is nan if the loss or their norm is not finite: such a step is skipped.

    All ranks agree, since both are of all ranks.
    """
    is_fine = metrics["loss"].isfinite() & metrics["grad_norm"].isfinite()
    return torch.where(is_fine, clip_scale(metrics["grad_norm"], max_norm), torch.nan)


def rebalance_(model: PreTrainedModel, loads: Mapping[str, Tensor], rate: float, scale: Tensor) -> None:
    """Move the biases of the routers of `model` by `rate`, towards experts with less than the mean of `loads`; by
    nothing in a step that is skipped."""
    if rate:
        set_biases_(model, next_biases(read_biases(model), loads, rate * scale.isfinite()))


def hear_all(requests: Requests, device: torch.device) -> dict[str, Tensor]:
    """How many ranks were asked to leave, and how many to save, by the names of metrics. Collective."""
    # Filled, not copied from the host, for which it would wait.
    asked = torch.stack([torch.full((), float(was), device=device) for was in requests.take()])
    return dict(zip(("asked_to_leave", "asked_to_save"), global_sum(asked), strict=True))
