"""Experts as one function of tokens and their choices: sorted by expert once, computed by grouped matrix products, and
summed back onto their tokens in a fixed order.

Whatever a mixture of experts does before and after its experts (routing, groups of experts, scaling, shared experts)
stays in its modeling file. What is swapped is the function behind transformers' experts interface, which is given each
token's experts and their weights. No host synchronisation, no mask of (tokens, experts), no loop over experts, and no
sum whose order depends on timing: two runs give the same bits. (torch's grouped product itself loops, and waits, where
it has no kernel: on GPUs, for other than bf16 on Hopper and Blackwell.)

`_apply_gate` is what transformers' decorator leaves on a module as the activation of its experts, and private;
`tests/test_experts.py` fails if it moves.

Dimensions: T tokens, K experts a token, R rows set aside (a row is a token at one of its experts), E experts, H hidden
size, F width of an expert.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from omni_models.rows import Across, Routes, collect, silu_halves, spread

ExpertsFn = Callable[..., Tensor]
"""(module, x_TH, expert_TK, weights_TK, *, rows=None, across=None) -> out_TH: what the experts of a module make of
tokens, weighted and summed, in the widest dtype of tokens and weights. Where only some experts are here, they are
numbered from 0, a choice of another number adds nothing, and at most `rows` choices are here, so that nobody asks the
GPU; `across(sum)` is then the sum of all ranks."""

COMPUTE = "omni_experts"
"""The attribute of an experts module that holds its own function."""


def sort_choices(expert_TK: Tensor, num_experts: int, rows: int | None = None) -> Routes:
    """Choices sorted by expert, those of one expert in the order of their tokens. Pure, no host synchronisation.

    Args:
        expert_TK: int64; a number of `num_experts` or more is a choice that gets no row.
        num_experts: E.
        rows: how many choices get one at most; None if all do.

    >>> sort_choices(torch.tensor([[2, 0], [0, 1]]), 4).counts_E
    tensor([2, 1, 1, 0])
    """
    # Sorting takes as many passes as a key has bytes.
    small = torch.int16 if num_experts < torch.iinfo(torch.int16).max else torch.int64
    sorted_C, order_C = expert_TK.flatten().clamp(max=num_experts).to(small).sort(stable=True)
    place_C = torch.empty_like(order_C)
    place_C[order_C] = torch.arange(len(order_C), device=order_C.device)
    # bincount would make the host wait for the GPU.
    bounds = torch.searchsorted(sorted_C, torch.arange(num_experts + 1, dtype=sorted_C.dtype, device=sorted_C.device))
    return Routes(order_C[:rows], place_C.view(expert_TK.shape), bounds, full=rows is None)


def grouped_experts(
    module: nn.Module,
    x_TH: Tensor,
    expert_TK: Tensor,
    weights_TK: Tensor,
    *,
    rows: int | None = None,
    across: Across | None = None,
) -> Tensor:
    """What the experts of `module` make of tokens, by grouped matrix products over rows sorted by expert: an
    `ExpertsFn`. Parameters may be DTensors, of which this rank's part holds the experts that are here."""
    first = next(iter(per_expert(module)))
    routes = sort_choices(expert_TK, len(_local(getattr(module, first))), rows)
    return collect(compute_rows(module, spread(x_TH, routes), routes), weights_TK, routes, across)


def compute_rows(module: nn.Module, rows_RH: Tensor, routes: Routes) -> Tensor:
    """What the experts of `module` make of rows sorted by expert, as `routes` says.

    Any layout that transformers' decorator declares: gated or not, with biases or not, weights transposed or not, a
    norm after each expert or not.
    """
    first, second = ("gate_up_proj" if _flag(module, "has_gate") else "up_proj"), "down_proj"
    # Parameters beside these two would learn from what lies in rows that are not used, and from its gradient.
    bare = dict(module.named_parameters()).keys() <= {first, second}
    keep = torch.nn.Identity() if routes.full or bare else partial(_blank, used_R1=routes.used_R1)
    linear = partial(_grouped_linear, module, ends_E=routes.bounds_E1[1:].to(torch.int32))
    hidden_RF = keep(linear(first, rows_RH))
    act: Any = module._apply_gate if _flag(module, "has_gate") else module.act_fn
    out_RH = keep(linear(second, act(hidden_RF, routes.used) if act is silu_halves else act(hidden_RF)))
    return keep(module.post_expert_norm(out_RH)) if _flag(module, "has_post_expert_norm") else out_RH  # pyright: ignore[reportCallIssue]


def compute_experts(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What transformers' experts interface asks for, by the function that `module` holds.

    Args:
        module: an experts module, with its function (see `omni_models.use_experts`).
        hidden_states: (T, H), or any shape of T tokens; what comes back has its shape and dtype.
        top_k_index: int64, the experts of each token, (T, K).
        top_k_weights: of each choice, (T, K), or of every expert, (T, E).
    """
    compute = getattr(module, COMPUTE, None)
    if compute is None:
        raise ValueError(f"{type(module).__name__} calls its experts but was not found by use_experts.")
    x_TH, expert_TK, weights = (x.flatten(0, -2) for x in (hidden_states, top_k_index, top_k_weights))
    weights_TK = weights if weights.shape == expert_TK.shape else weights.gather(-1, expert_TK)
    out_TH = compute(module, x_TH, expert_TK, weights_TK).to(hidden_states.dtype)
    # A view would lose the hooks of sharding if its caller adds to it in place.
    return out_TH if hidden_states.ndim == 2 else out_TH.view(hidden_states.shape).clone()


def choose_experts(model: PreTrainedModel, dtype: torch.dtype) -> str:
    """The fastest way to this model's experts in this dtype: "grouped", or "eager" where it cannot be. Pure."""
    return "eager" if experts_problems(model, "grouped", dtype) else "grouped"


def experts_problems(model: PreTrainedModel, compute: str, dtype: torch.dtype, *, ep: int = 1) -> list[str]:
    """Why `compute` cannot be how this model's experts are computed in this dtype, in words. Pure.

    Args:
        model: of any kind of transformers.
        compute: "grouped" or "eager".
        dtype: of compute.
        ep: ranks that experts are spread over.
    """
    if compute == "eager":
        return [f"experts=eager keeps all experts on every rank: use grouped with ep={ep}."] if ep > 1 else []
    if not any(is_experts(module) for module in model.modules()):
        return [
            f"{model.config.model_type} calls no experts interface of transformers, so experts=grouped has no way to "
            "its experts, if it has any: use eager, or leave it out."
        ]
    step = 16 // dtype.itemsize
    if odd := sorted({size for m in model.modules() if is_experts(m) for size in _widths(m) if size % step}):
        return [
            f"experts of {model.config.model_type} have a width of {', '.join(map(str, odd))}: grouped matrix products "
            f"in {dtype} need multiples of {step}. Leave them to the model's own loop (experts=eager), with ep=1."
        ]
    return []


def is_experts(module: nn.Module) -> bool:
    """Whether `module` calls transformers' experts interface: its decorator leaves these attributes."""
    return hasattr(module, "is_transposed") and hasattr(module, "has_gate") and hasattr(module, "num_experts")


def per_expert(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of an experts module that have a part for each expert along their first dim, by name. Pure."""
    own = dict(module.named_parameters(recurse=False))
    return {name: param for name, param in own.items() if param.ndim > 1 and param.shape[0] == module.num_experts}


def _blank(x_RX: Tensor, used_R1: Tensor) -> Tensor:
    """The same rows, and zeros where they are not used; gradients too."""
    return x_RX.where(used_R1, 0)


def _grouped_linear(module: nn.Module, name: str, x_RX: Tensor, ends_E: Tensor) -> Tensor:
    """(R, Y): each row times the matrix of its expert, plus its bias."""
    weight_EXY = _local(getattr(module, name))
    if not _flag(module, "is_transposed"):
        weight_EXY = weight_EXY.transpose(1, 2)
    bias_EY = _local(getattr(module, f"{name}_bias")) if _flag(module, "has_bias") else None
    if not len(x_RX):
        # A rank without rows has gradients all the same, zeros, so that it joins the sums that others wait for.
        nothing = weight_EXY.sum() + (0 if bias_EY is None else bias_EY.sum())
        return x_RX.new_zeros(0, weight_EXY.shape[2]) + 0 * nothing.to(x_RX.dtype) + x_RX.sum()
    out_RY = F.grouped_mm(x_RX.to(weight_EXY.dtype), weight_EXY, offs=ends_E)
    if bias_EY is None:
        return out_RY
    expert_R = torch.searchsorted(ends_E, torch.arange(len(x_RX), device=x_RX.device), right=True)
    return out_RY + bias_EY[expert_R.clamp(max=len(bias_EY) - 1)]


def _widths(module: nn.Module) -> set[int]:
    return {size for param in per_expert(module).values() if param.ndim == 3 for size in param.shape[1:]}


def _flag(module: nn.Module, name: str) -> bool:
    return bool(getattr(module, name, False))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
