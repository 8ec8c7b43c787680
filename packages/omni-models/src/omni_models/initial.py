"""Random weights, by the model's own initialisation, that depend on the seed and the kind of device alone.

Each block draws from a seed of its own, as whole tensors of which a rank keeps its part, so a rank holds one block
whole at a time. Experts would make that a large block: each of them draws from a seed of its own in turn, and a rank
draws only those that it holds. So the numbers are the same on every mesh.

`PreTrainedModel._init_weights` is where transformers keeps each model's own initialisation, and private;
`tests/test_weights.py` fails if it moves.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from omni_models.experts import is_experts, per_expert
from omni_models.facts import block_names
from omni_models.shares import local, own_slices, share


def fill_random_(model: PreTrainedModel, seed: int) -> None:
    """Set every parameter, and every buffer that initialisation sets.

    Raises:
        ValueError: if transformers' initialisation leaves a parameter unset.
    """
    blocks = block_names(model)
    inside = {id(module) for name in blocks for module in model.get_submodule(name).modules()}
    for name in ("", *blocks):
        _fill_unit_(model, name, seed, skip=frozenset() if name else frozenset(inside))
    for name, module in model.named_modules():
        if is_experts(module):
            _fill_experts_(model, name, module, seed)


def init_subtree_(module: nn.Module, init: Callable[[nn.Module], None], skip: frozenset[int] = frozenset()) -> None:
    """Initialise children first, then the module, each by the innermost model's own function, as transformers does."""
    for child in module.children():
        if id(child) not in skip:
            init_subtree_(child, child._init_weights if isinstance(child, PreTrainedModel) else init, skip)
    init(module)


def poison_(tensor: Tensor) -> None:
    """Fill with what no initialisation writes, so that what is left unset shows."""
    if tensor.is_floating_point():
        tensor.fill_(torch.nan)
    elif tensor.dtype != torch.bool:
        tensor.fill_(torch.iinfo(tensor.dtype).min)


def is_poison(tensor: Tensor) -> bool:
    """Whether something of `tensor` is as `poison_` left it."""
    if tensor.is_floating_point():
        return bool(tensor.isnan().any())
    return tensor.dtype != torch.bool and bool((tensor == torch.iinfo(tensor.dtype).min).any())


def _fill_unit_(model: PreTrainedModel, name: str, seed: int, *, skip: frozenset[int]) -> None:
    """Set block `name`, or what is around the blocks, but for what belongs to one expert."""
    unit = model.get_submodule(name)
    modules = [module for module in unit.modules() if id(module) not in skip]
    of_experts = {id(param) for m in modules if is_experts(m) for param in per_expert(m).values()}
    owners = [(m, key, p) for m in modules for key, p in m._parameters.items() if p is not None]
    # One tensor may have two names (tied weights): it is made once and put back once.
    whole = {
        id(p): torch.empty(p.shape, dtype=p.dtype, device="meta" if id(p) in of_experts else p.device)
        for *_, p in owners
    }
    for tensor in whole.values():
        poison_(tensor)
    with instead(owners, whole), seeded(seed, name, model.device):
        init_subtree_(unit, _init_of(model, name), skip)
    for owner, key, param in owners:
        if id(param) not in of_experts:
            _check_set(whole[id(param)], key, owner, name)
            local(param).copy_(share(whole[id(param)], param))


def _fill_experts_(model: PreTrainedModel, name: str, module: nn.Module, seed: int) -> None:
    """Set what each expert of `module` has of its own, expert by expert."""
    params = per_expert(module)
    parts = {key: own_slices(param) for key, param in params.items()}
    owners = [(module, key, param) for key, param in module._parameters.items() if param is not None]
    held = {expert for first, *_ in parts.values() for expert in range(first.start, first.stop)}
    for expert in sorted(held):
        # What is not of an expert is set already, and out of reach here.
        one = {
            id(param): torch.empty(1, *param.shape[1:], dtype=param.dtype, device=param.device)
            if key in params
            else torch.empty(param.shape, dtype=param.dtype, device="meta")
            for _, key, param in owners
        }
        for tensor in one.values():
            poison_(tensor)
        with instead(owners, one), seeded(seed, f"{name}.{expert}", model.device):
            _init_of(model, name)(module)
        for key, param in params.items():
            drawn, (first, *rest) = one[id(param)], parts[key]
            _check_set(drawn, key, module, name)
            if first.start <= expert < first.stop:
                local(param)[expert - first.start].copy_(drawn[0][tuple(rest)])


@contextmanager
def instead(owners: list[tuple[nn.Module, str, nn.Parameter]], others: dict[int, Tensor]) -> Iterator[None]:
    """While open, modules hold `others`, by the identity of what they held."""
    for owner, key, param in owners:
        owner._parameters[key] = nn.Parameter(others[id(param)], requires_grad=param.requires_grad)
    try:
        yield
    finally:
        for owner, key, param in owners:
            owner._parameters[key] = param


def _check_set(tensor: Tensor, key: str, owner: nn.Module, name: str) -> None:
    if is_poison(tensor):
        raise ValueError(f"transformers leaves {key} of {type(owner).__name__} in {name or 'root'} unset.")


def _init_of(model: PreTrainedModel, name: str) -> Callable[[nn.Module], None]:
    """The initialisation that transformers would use at `name`: that of the innermost model around it."""
    parts = name.split(".") if name else []
    around = [model.get_submodule(".".join(parts[:n])) for n in range(len(parts) + 1)]
    return next(m._init_weights for m in reversed(around) if isinstance(m, PreTrainedModel))


@contextmanager
def seeded(seed: int, name: str, device: torch.device) -> Iterator[None]:
    """While open, torch draws from a stream that belongs to `seed` and `name`; afterwards from where it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big"))
        yield
