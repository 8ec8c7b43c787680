"""Which modules are feed-forward modules that treat each token alone, so that tokens can be given to them in parts.

Nothing is read off a name: a small copy of the module, with random weights, must give for each token alone, on the CPU,
what it gives for that token among others.
"""

import inspect
from math import gcd
from typing import Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from omni_models.proofs import UNFIT, copy_probe, draw, equals, find_traits

MOST: Final = 1 << 24
"""Weights of a copy that is made for a proof."""


def find_mlps(model: PreTrainedModel, blocks: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the feed-forward modules in `blocks` that treat each token alone and draw no random numbers. Pure.

    Modules alike are proven once. Weights are neither read nor copied. Experts that are chosen are none of them.
    """
    return tuple(name for name, problem in _look(model, blocks).items() if not problem)


def describe_mlps(model: PreTrainedModel, blocks: tuple[str, ...]) -> dict[str, str]:
    """By class of module that might be a feed-forward: whether it treats each token alone, and why not, in words."""
    words: dict[str, dict[str, None]] = {}
    for name, problem in _look(model, blocks).items():
        said = f"not token by token: {problem}" if problem else "token by token"
        words.setdefault(type(model.get_submodule(name)).__name__, {})[said] = None
    return {kind: "; ".join(each) for kind, each in sorted(words.items())}


def token_wise_problem(module: nn.Module) -> str:
    """Why `module` is no feed-forward that treats each token alone and draws no random numbers, in words; "" if it is.

    Pure; its caller turns gradients and autocast off.
    """
    layers = _layers(module)
    own = {param for layer in layers for param in layer.parameters()}
    if any(param.ndim > 1 and param not in own for param in module.parameters()):
        return "it has matrices beside its own projections, as experts are"
    dims = [_dims(layer) for layer in layers]
    widths = {a for a, _ in dims} & {b for _, b in dims}
    # Small products prove the code around them as well as large ones, if no ratio of sizes changes.
    common = gcd(*(dim for both in dims for dim in both))
    unit = common if common % 4 else common // 4
    if sum(a * b for a, b in dims) // unit**2 > MOST:
        return "its sizes have no common divisor by which a copy could be made small"
    problems = [_probe(module, layers, unit, a // unit) for a in dict.fromkeys(a for a, _ in dims if a in widths)]
    # The first projection is the one that most likely takes what the module takes.
    return ("" if "" in problems else problems[0]) if problems else "no width goes in and comes out"


def _probe(module: nn.Module, layers: list[nn.Module], unit: int, width: int) -> str:
    generator = torch.Generator().manual_seed(0)
    replaced = {layer: _small(layer, unit, generator) for layer in layers}
    probe = copy_probe(module, replaced, generator).train()
    x_BSH = draw((2, 5, width), generator)
    x_TH = x_BSH.flatten(0, 1)
    try:
        with torch.random.fork_rng(devices=[]):
            before = torch.get_rng_state()
            whole = type(module).forward(probe, x_BSH)
            if not torch.equal(before, torch.get_rng_state()):
                return "it draws random numbers, as dropout does"
            if not isinstance(whole, Tensor) or whole.shape != x_BSH.shape or whole.dtype != x_BSH.dtype:
                return "it gives something else than a tensor like the one it takes"
            whole_TH = whole.flatten(0, 1)
            parts = [(x_TH, whole_TH), *((x_TH[None, i : i + 3], whole_TH[None, i : i + 3]) for i in range(0, 10, 3))]
            parts += [(x_TH[None, i : i + 1], whole_TH[None, i : i + 1]) for i in range(10)]
            if not all(equals(type(module).forward(probe, part), expected) for part, expected in parts):
                return "what it gives for a token depends on others"
    except UNFIT as error:
        return f"it fails on a plain input ({type(error).__name__})"
    return ""


def _look(model: PreTrainedModel, blocks: tuple[str, ...]) -> dict[str, str]:
    """What is wrong with each of the outermost modules in `blocks` that might be feed-forwards, by name; "" if nothing
    is."""
    proofs: dict[object, str] = {}
    found: dict[str, str] = {}
    inside, last = tuple(f"{name}." for name in blocks), "."
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for name, module in model.named_modules():
            if not name.startswith(inside) or name.startswith(last) or not _looks_like_mlp(module):
                continue
            key = find_traits(module)
            if key not in proofs:
                proofs[key] = token_wise_problem(module)
            found[name] = proofs[key]
            last = "." if found[name] else f"{name}."
    return found


def _looks_like_mlp(module: nn.Module) -> bool:
    """Whether it has two projections, and takes one input."""
    return len(_layers(module)) > 1 and len(inspect.signature(type(module).forward).parameters) == 2


def _layers(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if type(child) in (nn.Linear, Conv1D)]


def _dims(layer: nn.Module) -> tuple[int, int]:
    """Features in and out."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer, Conv1D)
    return layer.nx, layer.nf


def _small(layer: nn.Module, unit: int, generator: torch.Generator) -> nn.Module:
    """A random layer of its kind on the CPU, with features of `layer` divided by `unit`."""
    dim_in, dim_out = (dim // unit for dim in _dims(layer))
    with torch.device("meta"):  # Nothing is drawn for its first weights.
        bias = getattr(layer, "bias", None) is not None
        small = nn.Linear(dim_in, dim_out, bias=bias) if isinstance(layer, nn.Linear) else Conv1D(dim_out, dim_in)
    small = small.to(torch.float32).to_empty(device="cpu")
    for parameter in small.parameters():
        parameter.normal_(generator=generator).mul_(0.5)
    return small
