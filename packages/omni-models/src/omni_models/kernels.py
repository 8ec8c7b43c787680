"""Fused kernels for the elementwise arithmetic of a model: norms, gated activations, rotary positions.

What may be replaced is proven, not read off a class's name. A module that passes gets a forward of its own; classes,
modeling files and other models stay as they are.

Dimensions: B rows, S tokens a row, N query heads, K key heads, D head dim, H features.
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from types import MethodType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from omni_models.experts import is_experts
from omni_models.fused import Kernels, make_triton
from omni_models.padded import gated_mlp, pad_width, pads
from omni_models.patches import Patches, embed_patches, find_patches
from omni_models.proofs import (
    Gate,
    Gated,
    Norm,
    find_traits,
    looks_like_mlp,
    looks_like_norm,
    prove_gate,
    prove_gated,
    prove_norm,
)
from omni_models.proofs_rope import Rope, looks_like_attention, prove_rope, prove_tables
from omni_models.rows import has_triton
from omni_models.turning import bind_rope, widen_rope
from omni_models.wide_heads import round_heads

M = TypeVar("M", bound=PreTrainedModel)
Fit = Norm | Gated | Gate | Rope | Patches
NAMES = ("rms_norm", "swiglu", "rope", "patches")
"""The kernels by name. "swiglu" is gating by SiLU or by the tanh form of GELU, "patches" a product instead of a
convolution."""
_FUSED = "omni_kernel"
"""The attribute of a module that holds the name of the kernel in its forward."""


def use_kernels(model: M, names: Literal["auto"] | Sequence[str] = "auto", *, device_type: str) -> M:
    """The same model with fused kernels wherever they are proven to fit. Donates `model`.

    Before or after `use_attention`, and before the model is sharded.

    Args:
        model: any model, also on the meta device.
        names: some of `NAMES`, or "auto" for all that fit, which is none where they cannot run.
        device_type: where the model will run.

    Raises:
        ValueError: for an unknown name, and where a kernel asked for by name cannot run or fits nothing.
    """
    problems = kernel_problems(device_type)
    if names == "auto":
        return model if problems else apply_kernels(model, make_triton())
    if unknown := _unknown(names):
        raise ValueError(unknown)
    if problems and names:
        raise ValueError(f"{', '.join(names)}: {' '.join(problems)} Or pass names='auto' or names=().")
    return apply_kernels(model, make_triton(), names) if names else model


def apply_kernels(model: M, kernels: Kernels, names: Sequence[str] | None = None) -> M:
    """The same model, whose forwards call `kernels` wherever one of those named is proven to fit; None names all that
    do. Donates `model`.

    Raises:
        ValueError: for an unknown name, and for one that fits no module.
    """
    plan = plan_kernels(model)
    names = _fitting(plan) if names is None else names
    if unknown := _unknown(names):
        raise ValueError(unknown)
    fused = {getattr(module, _FUSED, None) for module in model.modules()}
    found = fused | {_name(fit) for fit in plan.values() if not isinstance(fit, str)}
    if idle := [name for name in names if name not in found]:
        reasons = "; ".join(f"{kind}: {what}" for kind, what in _words(plan).items() if "not fused" in what)
        why = f" {reasons}." if reasons else ""
        raise ValueError(f"{type(model).__name__} has no place for {', '.join(idle)}.{why} Leave it out.")
    forwards: dict[tuple[Any, ...], Callable[..., Any]] = {}
    for module, fit in plan.items():
        if isinstance(fit, str) or _name(fit) not in names:
            continue
        setattr(module, _FUSED, _name(fit))
        if isinstance(fit, Gate):
            module._apply_gate = kernels.silu_halves  # pyright: ignore[reportAttributeAccessIssue]
            continue
        key = (type(module), fit)
        if key not in forwards:
            forwards[key] = _fuse(type(module).forward, fit, kernels)
        module.forward = MethodType(forwards[key], module)
    return model


def describe_kernels(model: PreTrainedModel, *, device_type: str) -> dict[str, str]:
    """Which kernel fits each class of module, and why none does, in words. Pure, but looks for Triton's files."""
    words = {"triton": " ".join(problems)} if (problems := kernel_problems(device_type)) else {}
    fused = {type(m).__name__: f"{getattr(m, _FUSED)}, {_use(m)}" for m in model.modules() if hasattr(m, _FUSED)}
    return words | _words(plan_kernels(model)) | fused


def fitting_kernels(model: PreTrainedModel) -> tuple[str, ...]:
    """The names of the kernels that fit somewhere in `model`. Pure."""
    return _fitting(plan_kernels(model))


def _fitting(plan: dict[nn.Module, Fit | str]) -> tuple[str, ...]:
    found = {_name(fit) for fit in plan.values() if not isinstance(fit, str)}
    return tuple(name for name in NAMES if name in found)


def kernel_problems(device_type: str) -> list[str]:
    """Why the fused kernels cannot run on this kind of device, in words; empty if they can. Imports nothing."""
    problems = []
    if device_type != "cuda":
        problems.append(f"fused kernels run on CUDA, not on {device_type}.")
    if not has_triton():
        problems.append("fused kernels need Triton, which is not installed: it comes with torch for CUDA on Linux.")
    return problems


def plan_kernels(model: PreTrainedModel) -> dict[nn.Module, Fit | str]:
    """What was proven about each module that looks as if a kernel might fit, or why none does, in words. Pure.

    Modules alike are proven once. Weights are neither read nor copied, and no random state is drawn from.
    """
    proofs: dict[tuple[Any, ...], Fit | str] = {}
    plan: dict[nn.Module, Fit | str] = {}
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        repeats = prove_tables(model)
        for module in model.modules():
            if looks_like_norm(module):
                key, prove = find_traits(module), prove_norm
            elif is_experts(module):
                key, prove = find_traits(module), prove_gate
            elif looks_like_mlp(module):
                key, prove = find_traits(module), prove_gated
            elif looks_like_attention(module):
                key, prove = (type(module), getattr(module, "head_dim", 0)), partial(_prove_rope, repeats=repeats)
            elif patches := find_patches(module):
                key, prove = (patches,), lambda _, patches=patches: patches
            else:
                continue
            if {"forward", "_apply_gate"} & vars(module).keys():
                plan[module] = "it has a forward of its own already"
                continue
            if key not in proofs:
                proofs[key] = prove(module)
            plan[module] = proofs[key]
    return plan


def _prove_rope(module: nn.Module, repeats: Mapping[str, bool | str]) -> Rope | str:
    fit = prove_rope(module, repeats)
    return fit if isinstance(fit, str) else widen_rope(module, fit)


def _fuse(forward: Callable[..., Any], fit: Norm | Gated | Rope | Patches, kernels: Kernels) -> Callable[..., Any]:
    """A forward for modules of which `fit` is proven."""
    match fit:
        case Norm():
            return _fuse_norm(fit, kernels.rms_norm)
        case Gated():
            return _fuse_gated(fit, kernels.silu_mul if fit.act == "silu" else kernels.gelu_mul)
        case Rope():
            return bind_rope(forward, fit, kernels.rope)
        case Patches():
            return embed_patches(fit, forward)


def _fuse_norm(norm: Norm, rms_norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: nn.Module, *args: Tensor, **kwargs: Tensor) -> Tensor:
        (x,) = (*args, *kwargs.values())
        weight_H = self.weight
        assert isinstance(weight_H, Tensor)
        if norm.casting == "llama" and torch.promote_types(x.dtype, weight_H.dtype) != x.dtype:
            # A weight wider than x makes the product wider too, which is left to torch.
            ones_H = torch.ones_like(weight_H, dtype=x.dtype)
            return rms_norm(x, ones_H, norm.eps, 0.0, norm.casting) * (norm.offset + weight_H)
        return rms_norm(x, weight_H, norm.eps, norm.offset, norm.casting)

    return forward


def _fuse_gated(
    gated: Gated, act_mul: Callable[[Tensor, Tensor], Tensor], suits: Callable[..., bool] = pads
) -> Callable[..., Tensor]:
    width = pad_width(gated.inner)

    def forward(self: nn.Module, *args: Tensor, **kwargs: Tensor) -> Tensor:
        (x,) = (*args, *kwargs.values())
        gate, up, down = (getattr(self, name) for name in (gated.gate, gated.up, gated.down))
        if width > gated.inner and suits(x, gate, up, down):
            return gated_mlp(x, (gate, up, down), act_mul, width)
        # Called as modules, so that hooks, adapters and sharding see them.
        return down(act_mul(gate(x), up(x)))

    return forward


def _name(fit: Fit) -> str:
    return {Norm: "rms_norm", Gated: "swiglu", Gate: "swiglu", Rope: "rope", Patches: "patches"}[type(fit)]


def _use(module: nn.Module) -> str:
    own = is_experts(module) and getattr(module.config, "_experts_implementation", None) == "eager"
    return "in place, but the model's own loop over experts does not call it" if own else "in use"


def _words(plan: dict[nn.Module, Fit | str]) -> dict[str, str]:
    words: dict[str, dict[str, None]] = {}
    for module, fit in plan.items():
        words.setdefault(type(module).__name__, {})[_say(fit)] = None
    return {kind: "; ".join(each) for kind, each in sorted(words.items())}


def _say(fit: Fit | str) -> str:
    match fit:
        case Norm():
            return f"rms_norm (eps {fit.eps:g}, {'1 + weight' if fit.offset else 'weight'}, cast as {fit.casting})"
        case Gated():
            width = pad_width(fit.inner)
            wider = f", {fit.inner:,} features padded to {width:,} in 16 bits" if width > fit.inner else ""
            return f"swiglu ({'SiLU' if fit.act == 'silu' else 'tanh GELU'}{wider})"
        case Gate():
            return "swiglu (SiLU, of experts)"
        case Rope():
            wider = f", heads of {fit.dim} padded to {round_heads(fit.dim)} in 16 bits" if fit.dim else ""
            dtype = "fp32" if fit.wide else "in the dtype it is given"
            return f"rope ({dtype}{', of patches' if fit.flat else ''}{wider})"
        case Patches():
            return f"patches ({' x '.join(map(str, fit.size))}, a product)"
        case _:
            return f"not fused: {fit}"


def _unknown(names: Sequence[str]) -> str | None:
    """What is wrong with the names of kernels, in words."""
    if not (unknown := [name for name in names if name not in NAMES]):
        return None
    near = get_close_matches(unknown[0], NAMES, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"there is no kernel {', '.join(map(repr, unknown))}; there are {', '.join(NAMES)}{hint}"
