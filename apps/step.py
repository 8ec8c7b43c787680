"""One step of training: rows to the device, tensors to gradients, the balance of experts, and what all ranks must agree
on."""

import gc
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from decision import Decision
from rows import Rows
from share import TOLD, kind_of
from torch import Tensor
from transformers import PreTrainedModel

from omni_data import IGNORE, Counts, Cursor
from omni_mesh import Requests
from omni_models import (
    OmniModel,
    balance_loss,
    count_loads,
    count_losses,
    loss_weights,
    mean_loss,
    next_biases,
    read_biases,
    record_routing,
    set_biases_,
    summed_loss,
    summed_losses,
)
from omni_models.losses import TEXT
from omni_parallel import clip_scale, gather_objects, global_sum

Loss = Literal["auto", "chunked", "full"]


@contextmanager
def rare_collections(every: int = 50) -> Iterator[Callable[[int], None]]:
    """While open, Python looks for garbage only where it is told a step, and then at each `every`-th.

    Left to itself it looks in the midst of steps, on each rank at another time, for which all others wait. Objects that
    are there now are not looked at, and are again afterwards. A process that had frozen some before keeps these frozen,
    and no others: what the run leaves behind can be collected.
    """

    def collect_at(step: int) -> None:
        if step % every == 0:
            gc.collect()

    was_on, had_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.collect()
    if not had_frozen:
        gc.freeze()
    gc.disable()
    try:
        yield collect_at
    finally:
        if not had_frozen:
            gc.unfreeze()
        if was_on:
            gc.enable()


@contextmanager
def short_turns(seconds: float = 2e-4) -> Iterator[None]:
    """While open, a thread that holds Python's lock gives it up that long after another asked for it, instead of 5 ms.

    Each operator of torch lets go of the lock. If a thread that prepares data takes it then, whoever trains would have
    it back 5 ms later, many times a step: a GPU runs dry.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def seed_all_(seed: int, step: int, rank: int) -> None:
    """Seed the generators of torch, CUDA, numpy and Python for what `rank` draws in `step`.

    No generator has a state that outlives a step, so none has to be saved: a run that is continued draws what an
    unbroken one would, and on another number of ranks those that there are in both draw the same.
    """
    words = np.random.SeedSequence([seed % 2**32, step, rank]).generate_state(4)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(int(words[2]))
    random.seed(int(words[3]))


@dataclass(frozen=True, slots=True)
class DataTold:
    """What is told of the data of a step."""

    reach: float
    """Tokens of the document that a token is in, on average."""
    waited: float
    """Seconds until all of it was on its way to the device."""
    fill: float = 1.0
    """The share of positions that are not padding, of this rank."""
    counts: Counts = Counts()
    """What this rank read for it."""
    encoding: float = 0.0
    """Floating-point operations of towers in a forward pass, of the media of this rank."""
    last: bool = False
    """There is no more data on any rank."""


class End(NamedTuple):
    """There are no more rows of any rank."""

    counts: Counts = Counts()
    """What this rank read to find that out."""
    why: str = ""
    """If there never were any: why."""
    error: Exception | None = None
    """If there may be more: what is wrong with the data of a rank."""


Step = tuple[list[dict[str, Any]], Cursor, DataTold]
"""The microbatches of a step on the device, the place in the data after them, and what is told of them."""


def take_steps(batches: Iterator[tuple[Rows, Cursor]], run: Decision, device: torch.device) -> Iterator[Step]:
    """What this rank computes in each step, until there are no more rows on any rank. Effect: collective."""
    if not run.ends:
        while True:
            step = take_rows(batches, run.passes, device, may_end=False)
            assert not isinstance(step, End)
            yield step
    ahead = take_rows(batches, run.passes, device, may_end=True)
    if isinstance(ahead, End) and ahead.why:
        raise ValueError(ahead.why)
    while not isinstance(ahead, End):
        (micro, cursor, told), ahead = ahead, take_rows(batches, run.passes, device, may_end=True)
        if isinstance(ahead, End):
            told = replace(told, last=ahead.error is None, counts=told.counts + ahead.counts)
        yield micro, cursor, told
    if ahead.error is not None:
        raise ahead.error


def take_rows(batches: Iterator[tuple[Rows, Cursor]], count: int, device: torch.device, *, may_end: bool) -> Step | End:
    """The next `count` microbatches of this rank, those left out that have no row on any rank; or the end of all.

    Where data may end, ranks agree, on the host, on whether there is something to compute; and what is wrong with the
    data of one is known to all.
    """
    began, counts = time.perf_counter(), Counts()
    while True:
        error: Exception | None = None
        taken: list[tuple[Rows, Cursor]] = []
        try:
            taken.extend(next(batches) for _ in range(count))
        except TOLD as problem:
            if not may_end:
                raise
            error = problem
        counts = sum((rows.counts for rows, _ in taken), counts)
        if not may_end:
            break
        going = sum(not rows.over for rows, _ in taken)
        here = torch.tensor([sum(rows.count for rows, _ in taken), going, error is not None])
        filled, going, failed = global_sum(here).tolist()
        if failed:
            told = gather_objects(error and (kind_of(error), str(error)))
            kind, words = next(filter(None, told))
            return End(error=error or kind(words))
        if filled:
            break
        if not going:
            return End(counts, why="\n".join(dict.fromkeys(filter(None, gather_objects(taken[0][0].why)))))
    told = DataTold(
        sum(rows.reach for rows, _ in taken) / count,
        time.perf_counter() - began,
        fill=sum(rows.fill for rows, _ in taken) / count,
        counts=counts,
        encoding=sum(rows.encoding for rows, _ in taken),
    )
    return [rows.on(device) for rows, _ in taken], taken[-1][1], told


def accumulate_grads_(
    model: PreTrainedModel, micro: Sequence[dict[str, Any]], loss: Loss, *, balance: float = 0.0, sources: int = 1
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Add to `model` the gradient of the mean loss (nats) over every target of every rank and microbatch.

    Args:
        model: sharded or not.
        micro: the arguments of the model, and what else `place` gives, of each microbatch of this rank.
        loss: how it is computed.
        balance: weight of the balance loss, which is over the tokens of all ranks, and the mean over microbatches.
        sources: how many the rows are from; of several, each has a loss and targets of its own.

    Returns:
        What was measured, by name; and by layer the tokens of all ranks that chose each expert, (E,).
    """
    # A step without a target has a loss of zero, not of nothing.
    counts, weights = count_all(micro), loss_weights(model.config)
    targets, device = counts[TEXT], counts[TEXT].device
    total, uneven = {name: torch.zeros((), device=device) for name in counts}, torch.zeros((), device=device)
    by_source = torch.zeros(2, sources, dtype=torch.float64, device=device)
    loads: list[dict[str, Tensor]] = []
    for inputs in micro:
        labels_Bs, real_T, sources_B = inputs.pop("labels_Bs"), inputs.pop("real_T"), inputs.pop("sources_B")
        each_Bs = torch.zeros(labels_Bs.shape, device=device) if sources > 1 else None
        with record_routing(model, logits=balance > 0) as routing:
            sums = sum_losses(model, inputs, labels_Bs, loss, each_Bs)
        part = mean_loss(sums, counts, weights)
        if each_Bs is not None:
            add_by_source_(by_source, each_Bs, labels_Bs, sources_B)
        total = {name: mean + sums[name].detach() / counts[name].clamp(min=1) for name, mean in total.items()}
        if balance:
            logits, K = list(routing.logits.values()), next(iter(routing.chosen.values())).shape[1]
            even = balance_loss(logits, K, real_T=real_T, total=global_sum) / len(micro)
            uneven += even.detach()
            part = part + balance * even
        part.backward()
        loads.append(count_loads(routing, real_T=real_T))
    whole = dict(zip(total, global_sum(torch.stack([*total.values()])), strict=True))
    metrics = {"loss": torch.stack([weights[name] * mean for name, mean in whole.items()]).sum(), "targets": targets}
    if len(whole) > 1:
        metrics |= {f"loss_of_{name}": mean.masked_fill(counts[name] == 0, torch.nan) for name, mean in whole.items()}
    if sources > 1:
        losses_N, targets_N = global_sum(by_source)
        metrics |= {f"loss_of_{i}": losses_N[i] / targets_N[i] for i in range(sources)}
    if balance:
        metrics["balance_loss"] = global_sum(uneven)
    return metrics, sum_loads(loads)


def count_all(micro: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """By "text" and by decoder, the targets of all ranks and microbatches together, in one collective."""
    each = [count_losses(inputs, inputs["labels_Bs"]) for inputs in micro]
    here = torch.stack([torch.stack([*counts.values()]) for counts in each]).sum(0)
    return dict(zip(each[0], global_sum(here), strict=True))


def sum_losses(
    model: PreTrainedModel, inputs: Mapping[str, Any], labels_Bs: Tensor, loss: Loss, each_Bs: Tensor | None
) -> dict[str, Tensor]:
    """By "text" and by decoder, of models that have some, the loss summed over the targets of this rank."""
    if isinstance(model, OmniModel):
        return summed_losses(model, inputs, labels_Bs, impl=loss, each_Bs=each_Bs)
    return {TEXT: summed_loss(model, inputs, labels_Bs, impl=loss, each_Bs=each_Bs)}


def add_by_source_(sums_2N: Tensor, each_Bs: Tensor, labels_Bs: Tensor, sources_B: Tensor) -> Tensor:
    """Add to `sums_2N` the losses, and the targets, of the rows of each of N sources."""
    sums_2B = torch.stack([each_Bs.sum(1, dtype=sums_2N.dtype), (labels_Bs != IGNORE).sum(1)])
    return sums_2N.index_add_(1, sources_B.clamp(min=0), sums_2B.to(sums_2N.dtype))


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
    # Not `torch.where`, which would bring the nan from the host, and have it wait for the device.
    return clip_scale(metrics["grad_norm"], max_norm).masked_fill(~is_fine, torch.nan)


def rebalance_(model: PreTrainedModel, loads: Mapping[str, Tensor], rate: float, scale: Tensor) -> None:
    """Move the biases of the routers of `model` by `rate`, towards experts with less than the mean of `loads`; by
    nothing in a step that is skipped."""
    if rate:
        set_biases_(model, next_biases(read_biases(model), loads, rate * scale.isfinite()))


HEARD: Final = ("asked_to_leave", "asked_to_save", "fill", "cut", "dropped", "empty", "bad", "encoding")


def hear_all(requests: Requests, data: DataTold, device: torch.device) -> dict[str, Tensor]:
    """What all ranks together were asked by signals, and read: sums, by the names of `HEARD`. Collective."""
    counts = data.counts
    read = (data.fill, counts.cut, counts.dropped, counts.empty, counts.bad, data.encoding)
    heard = torch.tensor([*map(float, requests.take()), *read], dtype=torch.float64, pin_memory=device.type == "cuda")
    return dict(zip(HEARD, global_sum(heard.to(device, non_blocking=True)), strict=True))
