"""Keeping experts equally busy: what a model chose, a loss that evens it out, and biases that do.

The loss is that of Switch Transformers (Fedus et al., 2021, arXiv:2101.03961) as transformers computes it, but over the
tokens of every rank: where a batch is cut changes nothing. The biases are those of DeepSeek-V3 (2024, arXiv:2412.19437,
section 2.1.2): each step raises the bias of experts that had too little to do and lowers that of the others. Biases are
values; a model holds a copy, which its checkpoint keeps.

Names of transformers' models relied on here: routers are called `gate` or `router` beside their experts, and their
biases `e_score_correction_bias`. `tests/test_balance.py` fails if one moves.

Dimensions: T tokens, K experts a token, E experts.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from omni_models.balance_config import BalanceConfig
from omni_models.experts import is_experts
from omni_models.shares import local, share

Biases = Mapping[str, Tensor]
"""By the name of the experts: what is added to the scores of its router to choose, (E,), fp32."""


@dataclass(frozen=True, slots=True)
class Routing:
    """What a forward pass chose, layer by layer."""

    logits: dict[str, Tensor] = field(default_factory=dict)
    """Of each router, by the name of its experts, (T, E)."""
    chosen: dict[str, Tensor] = field(default_factory=dict)
    """The experts of each token, by the name of the experts, (T, K) int64."""
    num_experts: dict[str, int] = field(default_factory=dict)
    """E, by the same name."""


@contextmanager
def record_routing(model: PreTrainedModel, *, logits: bool = True) -> Iterator[Routing]:
    """While open, forward passes of `model` leave in the `Routing` what they choose. Recomputation leaves nothing.

    Experts without transformers' interface are left out, and so are routers that are not called `gate` or `router`.

    Args:
        model: of any kind of transformers.
        logits: keep those of routers too, with their history, until the next forward pass.
    """
    routing = Routing()
    handles = [
        module.register_forward_pre_hook(partial(_note_chosen, routing, name), with_kwargs=True)
        for name, module in model.named_modules()
        if is_experts(module)
    ]
    handles += [
        router.register_forward_hook(partial(_note_logits, routing.logits, name, _count(model.get_submodule(name))))
        for name, router in (_routers(model) if logits else {}).items()
    ]
    try:
        yield routing
    finally:
        for handle in handles:
            handle.remove()


def count_load(chosen_TK: Tensor, num_experts: int, *, real_T: Tensor | None = None) -> Tensor:
    """Tokens that chose each expert, (E,) int64. No host synchronisation.

    Args:
        chosen_TK: of a `Routing`.
        num_experts: E.
        real_T: bool, False for padding; None if there is none.
    """
    return _count_layers(chosen_TK[None], num_experts, real_T)[0]


def count_loads(routing: Routing, *, real_T: Tensor | None = None) -> dict[str, Tensor]:
    """`count_load` of each layer of `routing`, by the name of the experts; layers that are alike at once."""
    alike: dict[Any, list[str]] = defaultdict(list)
    for name, chosen_TK in routing.chosen.items():
        alike[routing.num_experts[name], chosen_TK.shape].append(name)
    loads: dict[str, Tensor] = {}
    for (num_experts, _), names in alike.items():
        chosen_LTK = torch.stack([routing.chosen[name] for name in names])
        loads |= dict(zip(names, _count_layers(chosen_LTK, num_experts, real_T), strict=True))
    return {name: loads[name] for name in routing.chosen}


def balance_loss(
    logits: Sequence[Tensor],
    experts_per_token: int,
    *,
    real_T: Tensor | None = None,
    total: Callable[[Tensor], Tensor] = torch.clone,
) -> Tensor:
    """This rank's part of the balance loss, fp32 scalar: summed over ranks it is E * sum_e f_e * p_e, where f_e is the
    share of tokens that chose expert e times K, and p_e its mean probability, over all tokens and layers.

    With experts in perfect balance it is K, as in transformers, which takes the mean over layers too.

    Args:
        logits: of the router of each layer, (T, E).
        experts_per_token: K.
        real_T: bool, False for padding; None if there is none.
        total: the sum of a tensor over all ranks, `omni_parallel.global_sum` for example.
    """
    num_experts, device = logits[0].shape[-1], logits[0].device
    counts_E = torch.zeros(num_experts, dtype=torch.int64, device=device)
    probs_E = torch.zeros(num_experts, dtype=torch.float32, device=device)
    for logits_TE in logits:
        probs_TE = logits_TE.softmax(-1, dtype=torch.float32)
        chosen_TK = probs_TE.detach().topk(experts_per_token, dim=-1).indices
        counts_E = counts_E + count_load(chosen_TK, num_experts, real_T=real_T)
        probs_E = probs_E + (probs_TE if real_T is None else probs_TE * real_T[:, None]).sum(0)
    load_E = total(counts_E)
    # Each token chose K, so their number needs no sum of its own.
    tokens = (load_E.sum() / experts_per_token).clamp(min=1)  # There may be no real one.
    return num_experts * (load_E / tokens * (probs_E / tokens)).sum()


def next_biases(biases: Biases, loads: Mapping[str, Tensor], rate: float | Tensor) -> dict[str, Tensor]:
    """The biases a step on: `rate` more for each expert below the mean load of its layer, `rate` less above. Pure.

    >>> next_biases({"experts": torch.zeros(3)}, {"experts": torch.tensor([1, 2, 6])}, 0.5)
    {'experts': tensor([ 0.5000,  0.5000, -0.5000])}

    Args:
        biases: by the name of the experts.
        loads: tokens that chose each expert in the step, on all ranks together, (E,), by the same names.
        rate: of a step.
    """
    mean = {name: load_E.float().mean() for name, load_E in loads.items()}
    return {name: bias_E + rate * (mean[name] - loads[name].float()).sign() for name, bias_E in biases.items()}


def read_biases(model: nn.Module) -> dict[str, Tensor]:
    """The biases that `model` holds, whole, by the name of the experts; none if its routers have none. Collective
    where they are sharded."""
    found = {name: tensor.detach() for name, tensor in _bias_tensors(model).items()}
    whole = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in found.items()}
    # A copy: what a model holds changes later, a value does not.
    return {name: t.flatten().to(torch.float32, copy=True) for name, t in whole.items()}


@torch.no_grad()
def set_biases_(model: nn.Module, biases: Biases) -> None:
    """Make `biases` those that `model` holds. No communication."""
    tensors = _bias_tensors(model)
    for name, bias_E in biases.items():
        tensor = tensors[name]
        local(tensor).copy_(share(bias_E.view(tensor.shape).to(tensor.dtype), tensor))


def asked_loss(model: PreTrainedModel, config: BalanceConfig) -> float:
    """The weight of the balance loss that `config` asks for, or else the configuration of `model`. Pure."""
    text = model.config.get_text_config()
    if config.loss is not None:
        return config.loss
    wanted = getattr(text, "output_router_logits", False) and getattr(text, "router_aux_loss_coef", 0.0)
    return float(wanted or 0.0)


def balance_problems(model: PreTrainedModel, config: BalanceConfig) -> list[str]:
    """Why the experts of `model` cannot be kept busy as `config` asks, in words. Pure."""
    name, weight = model.config.model_type, asked_loss(model, config)
    rules = [
        (not 0 <= weight < inf, f"balance loss={weight}: must be a number of at least 0."),
        (not 0 <= config.rate < inf, f"balance rate={config.rate}: must be a number of at least 0."),
        (
            weight > 0 and not _routers(model),
            f"balance loss={weight} needs routers beside experts, and none is found in {name}: leave it at 0.",
        ),
        (
            config.rate > 0 and not _bias_tensors(model),
            f"balance rate={config.rate} moves biases of routers, of which {name} has none: "
            f"{'use balance.loss' if _routers(model) else 'leave it at 0'}.",
        ),
    ]
    return [problem for holds, problem in rules if holds]


def _count_layers(chosen_LTK: Tensor, num_experts: int, real_T: Tensor | None) -> Tensor:
    """Tokens that chose each expert of each layer, (L, E) int64. bincount would make the host wait for the GPU."""
    if real_T is not None:
        chosen_LTK = chosen_LTK.where(real_T[:, None], num_experts)
    layers = len(chosen_LTK)
    first_L11 = torch.arange(layers, device=chosen_LTK.device)[:, None, None] * (num_experts + 1)
    places = (chosen_LTK.clamp(max=num_experts) + first_L11).flatten()
    counts = torch.zeros(layers * (num_experts + 1), dtype=torch.int64, device=chosen_LTK.device)
    counts.scatter_add_(0, places, torch.ones_like(places))
    return counts.view(layers, num_experts + 1)[:, :-1]


def _bias_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensor of biases beside each experts module, by the name of the experts."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if is_experts(module):
            layer = model.get_submodule(name.rpartition(".")[0])
            for key, tensor in (*layer.named_buffers(), *layer.named_parameters()):
                if key.endswith("e_score_correction_bias"):
                    found[name] = tensor
    return found


def _routers(model: nn.Module) -> dict[str, nn.Module]:
    """The router beside each experts module, by the name of the experts."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if is_experts(module):
            layer = model.get_submodule(name.rpartition(".")[0])
            beside = (getattr(layer, key, None) for key in ("gate", "router"))
            found |= {name: router for router in beside if isinstance(router, nn.Module)}  # noqa: B035 There is one.
    return found


def _note_chosen(routing: Routing, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    routing.chosen[name] = args[1] if len(args) > 1 else kwargs["top_k_index"]
    routing.num_experts[name] = _count(module)


def _note_logits(logits: dict[str, Tensor], name: str, num_experts: int, *called: Any) -> None:
    """Of what a router gives, the logits are the first that have a number for each expert."""
    *_, output = called
    given = output if isinstance(output, tuple) else (output,)
    fits = [x for x in given if isinstance(x, Tensor) and x.is_floating_point() and x.shape[-1] == num_experts]
    logits[name] = fits[0].flatten(0, -2)


def _count(experts: nn.Module) -> int:
    return experts.num_experts  # pyright: ignore[reportReturnType]
