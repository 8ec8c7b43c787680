"""What a norm and a gated multilayer perceptron are proven to compute, and the means of such proofs.

Nothing is read off a class's name: a copy of the module with random weights must give on the CPU what the kernel
computes. A proof gives what is proven, or in words why nothing is; its caller turns gradients and autocast off.

Dimensions: H features, I features between the projections.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.configuration_utils import PreTrainedConfig

from omni_models.rms_norm import rms_norm_by_formula

# Whatever a forward raises on an input that it was not written for.
UNFIT = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError)
_ACTS: dict[Literal["silu", "gelu"], Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": partial(F.gelu, approximate="tanh"),
}
"""The activations that kernels have."""


@dataclass(frozen=True, slots=True)
class Norm:
    """What a norm was proven to compute: see `Kernels.rms_norm`."""

    eps: float
    offset: float
    casting: Literal["llama", "gemma"]


@dataclass(frozen=True, slots=True)
class Gated:
    """down(act(gate(x)) * up(x)): the names of the three projections, the activation, and the features between them."""

    gate: str
    up: str
    down: str
    act: Literal["silu", "gelu"]
    inner: int


@dataclass(frozen=True, slots=True)
class Gate:
    """silu(a) * b, where a and b are the halves of what the first product of experts gives: see `rows.silu_halves`."""


def looks_like_norm(module: nn.Module) -> bool:
    """Whether it has one weight, a value a feature, or the name of a norm."""
    params = tuple(module.parameters())
    weighs = len(params) == 1 and params[0].ndim == 1 and hasattr(module, "weight")
    return next(module.children(), None) is None and (weighs or "Norm" in type(module).__name__)


def looks_like_mlp(module: nn.Module) -> bool:
    """Whether it has three projections, or the name of a multilayer perceptron."""
    return len(_linears(module)) == 3 or any(part in type(module).__name__ for part in ("MLP", "Experts"))


def prove_norm(module: nn.Module) -> Norm | str:
    """What `module` computes if that is an RMS norm; otherwise why not, in words."""
    weight_H = getattr(module, "weight", None)
    if not isinstance(weight_H, Tensor) or weight_H.ndim != 1 or len(tuple(module.parameters())) != 1:
        return "it has something else than one weight, a value a feature"
    if len(inspect.signature(type(module).forward).parameters) != 2:
        return "it takes more than one input"
    generator = torch.Generator().manual_seed(0)
    probe = copy_probe(module, {}, generator)
    # Only where the mean of squares is about as small as eps does eps show.
    x = torch.stack([draw((4, weight_H.shape[0]), generator) * scale for scale in (1e-3, 1e-2, 1.0, 30.0, 1e3)])
    options = [
        (value, offset)
        for value in {v for v in vars(module).values() if isinstance(v, float) and 0 < v < 1}
        for offset in (0.0, 1.0)
    ]
    try:
        out = type(module).forward(probe, x)
        found = [each for each in options if equals(out, rms_norm_by_formula(x, probe.weight, *each, "gemma"))]
        if len(found) != 1:
            return "it computes something else than x * rsqrt(mean(x^2) + eps) * weight, or * (1 + weight)"
        probe = probe.to(torch.bfloat16)
        x = x.to(torch.bfloat16)
        out = type(module).forward(probe, x)
    except UNFIT as error:
        return f"it fails on a plain input ({type(error).__name__})"
    for casting in ("llama", "gemma"):
        if equals_in_bits(out, rms_norm_by_formula(x, probe.weight, *found[0], casting)):
            return Norm(*found[0], casting)
    return "it rounds elsewhere than a norm of Llama or of Gemma"


def prove_gated(module: nn.Module) -> Gated | str:
    """What `module` computes if that is down(act(gate(x)) * up(x)); otherwise why not, in words."""
    linears = _linears(module)
    if len(linears) != 3:
        return f"it has {len(linears)} Linear modules, not three for gate, up and down"
    if len(inspect.signature(type(module).forward).parameters) != 2:
        return "it takes more than one input"
    generator = torch.Generator().manual_seed(0)
    errors: set[str] = set()
    for gate, up, down in permutations(linears):
        wide, narrow = _dims(linears[gate]), _dims(linears[down])
        if _dims(linears[up]) != wide or narrow != wide[::-1]:
            continue
        # Small projections prove the code around them as well as large ones.
        H, I = (8, 8) if wide == narrow else (8, 12)
        sizes = {gate: (H, I), up: (H, I), down: (I, H)}
        replaced = {linears[name]: _small(linears[name], *sizes[name], generator) for name in linears}
        probe = copy_probe(module, replaced, generator)
        try:
            for act, function in _ACTS.items():
                if all(
                    equals(type(module).forward(probe, x), replaced[linears[down]](function(a) * b))
                    for scale in (0.1, 1.0, 30.0)
                    for x in [draw((2, 16, H), generator) * scale]
                    for a, b in [(replaced[linears[gate]](x), replaced[linears[up]](x))]
                ):
                    return Gated(gate, up, down, act, inner=wide[1])
        except UNFIT as error:
            errors.add(type(error).__name__)
    failed = f" (it fails on a plain input: {', '.join(sorted(errors))})" if errors else ""
    return f"it computes something else than down(act(gate(x)) * up(x)) with SiLU or the tanh form of GELU{failed}"


def prove_gate(module: nn.Module) -> Gate | str:
    """What the activation of experts computes if that is silu of one half times the other; otherwise why not."""
    gate: Any = getattr(module, "_apply_gate", None)
    if gate is None or not getattr(module, "has_gate", False):
        return "its experts have no gate"
    generator = torch.Generator().manual_seed(0)
    try:
        for scale in (0.1, 1.0, 30.0):
            both = draw((16, 24), generator) * scale
            a, b = both.chunk(2, dim=-1)
            if not equals(gate(both), F.silu(a) * b):
                return "its experts compute something else than silu of one half times the other"
    except UNFIT as error:
        return f"its gate fails on a plain input ({type(error).__name__})"
    return Gate()


def _linears(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}


def _dims(linear: nn.Linear) -> tuple[int, int]:
    return linear.in_features, linear.out_features


def _small(linear: nn.Linear, dim_in: int, dim_out: int, generator: torch.Generator) -> nn.Linear:
    small = nn.Linear(dim_in, dim_out, bias=linear.bias is not None, device="meta").to_empty(device="cpu")
    for parameter in small.parameters():
        parameter.normal_(generator=generator).mul_(0.5)
    return small


def find_traits(module: nn.Module) -> tuple[Any, ...]:
    """What modules must share to be proven by one of them."""
    plain = (bool, int, float, str)
    own = tuple((name, v if isinstance(v, plain) else id(v)) for name, v in vars(module).items() if name[0] != "_")
    return type(module), repr(module), own, tuple(x.shape for x in module.parameters(recurse=False))


def copy_probe(module: nn.Module, replaced: Mapping[Any, nn.Module], generator: torch.Generator) -> Any:
    """A copy of `module` on the CPU in fp32 with random weights, which neither reads nor copies those of `module`."""
    memo: dict[int, Any] = {id(old): new for old, new in replaced.items()}
    kept = {id(x) for old in replaced for x in old.parameters()}
    for x in (*module.parameters(), *module.buffers()):
        if id(x) not in kept:
            drawn = draw(x.shape, generator)
            memo[id(x)] = nn.Parameter(drawn) if isinstance(x, nn.Parameter) else drawn
    memo |= {id(value): value for value in vars(module).values() if isinstance(value, PreTrainedConfig)}
    return copy.deepcopy(module, memo)


def draw(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """A normal sample on the CPU in fp32, whatever the default device and dtype."""
    return torch.randn(tuple(shape), generator=generator, device="cpu", dtype=torch.float32)


def equals(got: Any, want: Tensor) -> bool:
    """To the precision of fp32, each row of the first dim by its own scale."""
    return _is_like(got, want) and all(
        bool((a - b).abs().max() <= 1e-5 * b.abs().max()) for a, b in zip(got, want, strict=True)
    )


def equals_in_bits(got: Any, want: Tensor) -> bool:
    """But for the rare rounding that another order of operations tips over; casts elsewhere tip over a third."""
    return _is_like(got, want) and bool((got == want).float().mean() > 0.98)


def _is_like(got: Any, want: Tensor) -> bool:
    return isinstance(got, Tensor) and got.shape == want.shape and got.dtype == want.dtype
