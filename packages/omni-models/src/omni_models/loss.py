"""Losses as sums over tokens, in nats; the caller divides by the number of targets of the whole world.

The loss of a language model is the largest thing it computes: at 150,000 tokens of vocabulary, the logits of one row
of 8,192 are 5 GB in fp32. The chunked loss never holds more than `CHUNK_BYTES` of them: it replaces the output head,
for the time of one call, by a function from hidden states to the loss. On a GPU with Triton they turn into their
gradient where they lie, in the dtype of the hidden states, and are never in fp32.

Dimensions: B rows, s tokens of a row on this rank, T = B*s tokens, H hidden size, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from omni_models.classes import called
from omni_models.rows import fuses

IGNORE = -100
"""The label of a token that is no target."""

CHUNK_BYTES = 1 << 30
"""Most bytes of logits that the chunked loss holds at once; in fp32, but where they are fused with their gradient."""

_CHANGES = (
    *("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier_scale", "mup_width_scale"),
    "vocabulary_map",
)
"""Fields of configurations of models that multiply or mask their logits after the head, whatever the value."""


def count_targets(labels_Bs: Tensor) -> Tensor:
    """How many labels count towards the loss. Scalar, int64, no host synchronisation."""
    return (labels_Bs != IGNORE).sum()


def choose_loss(model: PreTrainedModel) -> Literal["chunked", "full"]:
    """The cheapest way to this model's exact loss: "chunked", or "full" where the model changes its logits. Pure."""
    return "full" if loss_problems(model, "chunked") else "chunked"


def loss_problems(model: PreTrainedModel, impl: str) -> list[str]:
    """Why `impl` would not give this model's loss; empty if it does, as far as a look can tell. Pure."""
    text, name = model.config.get_text_config(), model.config.model_type
    if impl != "chunked":
        return []
    if not isinstance(_head(model), nn.Linear):
        return [f"{name} has no linear output head for the chunked loss: use full."]
    changes = [field for field in _CHANGES if hasattr(text, field)]
    changes += ["final_logit_softcapping"] if getattr(text, "final_logit_softcapping", None) is not None else []
    return [f"{name} changes its logits after the head ({field}): use the full loss." for field in changes]


def summed_loss(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    labels_Bs: Tensor,
    *,
    impl: Literal["auto", "chunked", "full"] = "auto",
    each_Bs: Tensor | None = None,
) -> Tensor:
    """Cross entropy summed over the targets. Scalar, fp32, nats.

    Args:
        model: a causal language model of transformers, sharded or not.
        inputs: arguments of `model(...)`: `input_ids`, `position_ids`, and what its attention needs.
        labels_Bs: int64, already shifted: `labels_Bs[b, s]` is the token after `input_ids[b, s]`, or -100.
        impl: "chunked" never holds all logits; "full" computes them as the model does; "auto" is `choose_loss`.
        each_Bs: if given, memory for the loss of every target, fp32, zero where there is none; without a gradient.

    Raises:
        ValueError: if "chunked" is asked of a model that has no linear head or that changes its logits after it.
    """
    return loss_and_output(model, inputs, labels_Bs, impl, each_Bs)[0]


def loss_and_output(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    labels_Bs: Tensor,
    impl: Literal["auto", "chunked", "full"],
    each_Bs: Tensor | None,
) -> tuple[Tensor, Any]:
    """`summed_loss` and what else the model gave, whose logits may be the loss itself."""
    if impl == "auto":
        impl = choose_loss(model)
    if impl == "full":
        output = model(**inputs, **_quiet(model))
        logits_BsV = output.logits
        _refuse_unequal(labels_Bs, logits_BsV)
        how = {"ignore_index": IGNORE, "reduction": "sum" if each_Bs is None else "none"}
        losses = F.cross_entropy(logits_BsV.flatten(0, 1).float(), labels_Bs.flatten(), **how)
        if each_Bs is None:
            return losses, output
        each_Bs.copy_(losses.detach().view_as(each_Bs))
        return losses.sum(), output
    head = _head(model)
    if not isinstance(head, nn.Linear):
        raise ValueError(f"{type(model).__name__} has no linear output head: pass impl='full'.")
    with _head_as_loss(head, labels_Bs, each_Bs) as losses:
        output = model(**inputs, **_quiet(model))
    returned = output.logits
    if len(losses) != 1 or returned is not losses[0][0] or returned._version != losses[0][1]:
        raise ValueError(
            f"{type(model).__name__} computes with its logits after the head, so the chunked loss would be wrong: "
            "pass impl='full'."
        )
    return returned, output


def chunked_cross_entropy(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    labels_T: Tensor,
    chunk: int,
    *,
    each_T: Tensor | None = None,
) -> Tensor:
    """Summed cross entropy of the logits `hidden_TH @ weight_VH.T + bias_V`, `chunk` tokens at a time. Scalar, fp32.

    Gradients are made in the forward pass, while a chunk's logits exist, so they are computed once and never kept;
    weight gradients are summed over chunks in fp32. `each_T` takes the loss of each target.
    """
    if not torch.is_grad_enabled():  # Inside, only the tensors tell whether gradients are wanted.
        hidden_TH, weight_VH = hidden_TH.detach(), weight_VH.detach()
        bias_V = None if bias_V is None else bias_V.detach()
    out = _ChunkedCrossEntropy.apply(hidden_TH, weight_VH, bias_V, labels_T, chunk, each_T)
    assert isinstance(out, Tensor)
    return out


def chunk_tokens(tokens: int, vocab_size: int, max_bytes: int = CHUNK_BYTES, *, itemsize: int = 4) -> int:
    """How many tokens a chunk holds so that its logits, of `itemsize` bytes each, fit `max_bytes`, in chunks of nearly
    equal size but for the last: a multiple of the 128 that matrix products compute at a time, where that fits. Pure.

    >>> chunk_tokens(8192, 151936)
    1664
    """
    most = max(1, max_bytes // (itemsize * vocab_size))
    chunks = max(1, -(-tokens // most))
    equal = max(1, -(-tokens // chunks))
    return min(tokens, even) if (even := -(-equal // 128) * 128) <= most and tokens else equal


def _head(model: PreTrainedModel) -> nn.Module | None:
    """What makes logits: of a head that is trained beside adapters, the copy that is called."""
    head = model.get_output_embeddings()
    return called(head) if isinstance(head, nn.Module) else None


def _quiet(model: PreTrainedModel) -> dict[str, bool]:
    """Arguments that leave out what training does not want: a cache, and the balance loss of this rank's tokens."""
    text = model.config.get_text_config()
    return {"use_cache": False} | ({"output_router_logits": False} if hasattr(text, "output_router_logits") else {})


def _refuse_unequal(labels_Bs: Tensor, states_BsX: Tensor) -> None:
    if states_BsX.shape[:-1] != labels_Bs.shape:
        raise ValueError(
            f"{list(labels_Bs.shape)} labels met {list(states_BsX.shape[:-1])} hidden states: "
            "cut labels and tokens alike."
        )


@contextmanager
def _head_as_loss(head: nn.Linear, labels_Bs: Tensor, each_Bs: Tensor | None) -> Iterator[list[tuple[Tensor, int]]]:
    """While open, calling `head` gives the summed loss; the list holds what it gave, and its version."""
    losses: list[tuple[Tensor, int]] = []

    def forward(hidden_BsH: Tensor) -> Tensor:
        _refuse_unequal(labels_Bs, hidden_BsH)
        hidden_TH, labels_T = hidden_BsH.flatten(0, -2), labels_Bs.flatten()
        itemsize = hidden_TH.dtype.itemsize if fuses(hidden_TH) else 4
        chunk = chunk_tokens(len(hidden_TH), head.weight.shape[0], itemsize=itemsize)
        each_T = None if each_Bs is None else each_Bs.view(-1)
        loss = chunked_cross_entropy(hidden_TH, head.weight, head.bias, labels_T, chunk, each_T=each_T)
        losses.append((loss, loss._version))
        return loss

    head.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield losses
    finally:
        del head.forward


def _cross_entropy(logits_TV: Tensor, index_T1: Tensor, *, grads: bool) -> tuple[Tensor, Tensor | None]:
    """The cross entropy of each token, (T, 1) fp32, and if wanted its gradient, softmax - one_hot, in the dtype of the
    products that read it. The label's own entry is subtracted in fp32 first, since a sure model's would round to zero.

    Donates `logits_TV`.
    """
    if fuses(logits_TV):
        from omni_models import triton_loss

        return triton_loss.cross_entropy_(logits_TV, index_T1, grads=grads)[:, None], logits_TV if grads else None
    logp_TV = logits_TV.log_softmax(dim=-1, dtype=torch.float32)
    logp_T1 = logp_TV.gather(1, index_T1)
    if not grads:
        return -logp_T1, None
    d_logits_TV = torch.exp(logp_TV, out=torch.empty_like(logits_TV))
    return -logp_T1, d_logits_TV.scatter_(1, index_T1, logp_T1.expm1().to(logits_TV.dtype))


def _add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """`total + a @ b` in fp32 or wider; None is nothing yet. Donates `total`. cuBLAS adds what it has summed, without
    rounding it first."""
    if a.is_cuda and a.dtype.itemsize < 4:
        if total is None:
            return torch.mm(a, b, out_dtype=torch.float32)
        return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    return (a @ b).to(torch.promote_types(a.dtype, torch.float32)) if total is None else total.add_(a @ b)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        hidden_TH, weight_VH, bias_V, labels_T, chunk, each_T = inputs
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        total = hidden_TH.new_zeros((), dtype=torch.float32)
        d_hidden_TH = torch.empty_like(hidden_TH) if need_hidden else None
        d_weight_VH = None
        d_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and need_bias else None
        for start in range(0, len(hidden_TH), chunk):
            part = slice(start, start + chunk)
            hidden, labels = hidden_TH[part], labels_T[part]
            target = (labels != IGNORE)[:, None]
            index = labels.clamp(min=0)[:, None]
            logits = F.linear(hidden, weight_VH, bias_V)
            losses, d_logits = _cross_entropy(logits, index, grads=need_hidden or need_weight or need_bias)
            total += (losses * target).sum()
            if each_T is not None:
                each_T[part] = losses.masked_fill(~target, 0)[:, 0]
            if d_logits is None:
                continue
            d_logits = d_logits.to(hidden.dtype)  # Under autocast logits are narrower than what they were made of.
            # What is no target is left out where it is cheap: of the hidden side, not of the vocabulary.
            if d_hidden_TH is not None:
                torch.mm(d_logits, weight_VH, out=d_hidden_TH[part]).mul_(target)
            if need_weight:
                d_weight_VH = _add_product(d_weight_VH, d_logits.T, hidden * target)
            if d_bias_V is not None:
                d_bias_V += (d_logits * target).sum(0, dtype=torch.float32)
        if need_weight and d_weight_VH is None:  # There was no token.
            d_weight_VH = torch.zeros_like(weight_VH)
        # Each gradient takes its input's dtype here, once; backward only scales it.
        grads = ((d_hidden_TH, hidden_TH), (d_weight_VH, weight_VH), (d_bias_V, bias_V))
        ctx.save_for_backward(*(None if grad is None or like is None else grad.to(like.dtype) for grad, like in grads))
        return total

    @staticmethod
    def backward(ctx: Any, *d_totals: Tensor) -> tuple[Tensor | None, ...]:
        # In place: a head's gradient is too large to hold twice. torch refuses a second backward pass by itself.
        return (*(None if grad is None else _scale_(grad, d_totals[0]) for grad in ctx.saved_tensors), None, None, None)


def _scale_(grad: Tensor, factor: Tensor) -> Tensor:
    if fuses(grad) and grad.is_contiguous():
        from omni_models import triton_loss

        return triton_loss.scale_(grad, factor)
    return grad.mul_(factor)
