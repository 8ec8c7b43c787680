"""Fused kernels for the elementwise arithmetic of a model: norms, gated activations, rotary positions.

The kernels are functions of Liger (Hsu et al., 2024, arXiv:2410.10989); its patches of models are not used. What may
be replaced is proven, not read off a class's name: a copy of a module with random weights must give on the CPU what
the kernel computes. A module that passes gets a forward of its own; classes, modeling files and other models stay.

No kernel writes where another may read: Liger's own functions turn queries and keys in place, and write gradients over
the inputs. A recomputed block that keeps the output of its projections would then turn them twice.

Dimensions: B rows, S tokens a row, N query heads, K key heads, D head dim, R width of the position tables, H features.
"""

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from itertools import permutations
from types import FunctionType, MethodType
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from omni_models.support import is_attention

M = TypeVar("M", bound=PreTrainedModel)
NAMES = ("rms_norm", "swiglu", "rope")
"""The kernels by name. "swiglu" is gating by SiLU or by the tanh form of GELU."""
INSTALL = "uv sync --all-packages --extra liger"
"""What puts Liger there."""
_FUSED = "omni_kernel"
"""The attribute of a module that holds the name of the kernel in its forward."""
_ROTATE = "apply_rotary_pos_emb"
"""What transformers calls the function that turns queries and keys, in the globals of a modeling file."""
_OPTIONS = {"unsqueeze_dim", "position_ids"}
"""What that function may take beside queries, keys and tables."""
# Whatever a forward raises on an input that it was not written for.
_UNFIT = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The fused functions. None of them writes into its arguments, nor its backward into what it was given.

    Attributes:
        rms_norm: (x (..., H), weight_H, eps, offset, casting) -> x * rsqrt(mean(x^2) + eps) * (offset + weight), the
            sum in fp32. Casting "llama" multiplies after the cast to the dtype of x, "gemma" before it.
        silu_mul: (gate, up) -> silu(gate) * up.
        gelu_mul: (gate, up) -> gelu(gate, approximate="tanh") * up.
        rope: (q_BNSD, k_BKSD, cos, sin, width) -> (q_BNSD, k_BKSD), of which the first `width` features are turned.
            Tables are (1 or B, S, R) of the dtype of q; their first width/2 columns count.
    """

    rms_norm: Callable[[Tensor, Tensor, float, float, str], Tensor]
    silu_mul: Callable[[Tensor, Tensor], Tensor]
    gelu_mul: Callable[[Tensor, Tensor], Tensor]
    rope: Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Norm:
    """What a norm was proven to compute: see `Kernels.rms_norm`."""

    eps: float
    offset: float
    casting: Literal["llama", "gemma"]


@dataclass(frozen=True, slots=True)
class Gated:
    """down(act(gate(x)) * up(x)): the names of the three projections, and the activation."""

    gate: str
    up: str
    down: str
    act: Literal["silu", "gelu"]


@dataclass(frozen=True, slots=True)
class Rope:
    """How a forward turns queries and keys.

    Attributes:
        rotate: the function of the modeling file.
        half: its tables have one column for two features; otherwise the second half of the columns repeats the first.
        wide: it computes in fp32 whatever it is given.
    """

    rotate: Callable[..., tuple[Tensor, Tensor]]
    half: bool
    wide: bool


Fit = Norm | Gated | Rope


def use_kernels(model: M, names: Literal["auto"] | Sequence[str] = "auto", *, device_type: str) -> M:
    """The same model with fused kernels wherever they are proven to fit. Donates `model`.

    Before or after `use_attention`, and before the model is sharded.

    Args:
        model: any model, also on the meta device.
        names: some of `NAMES`, or "auto" for all that fit, which is none where Liger cannot run.
        device_type: where the model will run.

    Raises:
        ValueError: for an unknown name, and where a kernel asked for by name cannot run or fits nothing.
    """
    problems = kernel_problems(device_type)
    if names == "auto":
        return model if problems else apply_kernels(model, make_liger(), fitting_kernels(model))
    if unknown := _unknown(names):
        raise ValueError(unknown)
    if problems and names:
        raise ValueError(f"{', '.join(names)}: {' '.join(problems)} Or pass names='auto' or names=().")
    return apply_kernels(model, make_liger(), names) if names else model


def apply_kernels(model: M, kernels: Kernels, names: Sequence[str] = NAMES) -> M:
    """The same model, whose forwards call `kernels` wherever one of those named is proven to fit. Donates `model`.

    Raises:
        ValueError: for an unknown name, and for one that fits no module.
    """
    if unknown := _unknown(names):
        raise ValueError(unknown)
    plan = plan_kernels(model)
    fused = {getattr(module, _FUSED, None) for module in model.modules()}
    found = fused | {_name(fit) for fit in plan.values() if not isinstance(fit, str)}
    if idle := [name for name in names if name not in found]:
        reasons = "; ".join(f"{kind}: {what}" for kind, what in _words(plan).items() if "not fused" in what)
        raise ValueError(f"{type(model).__name__} has no place for {', '.join(idle)}. {reasons}. Leave it out.")
    forwards: dict[tuple[Any, ...], Callable[..., Any]] = {}
    for module, fit in plan.items():
        if isinstance(fit, str) or _name(fit) not in names:
            continue
        key = (type(module), fit)
        if key not in forwards:
            forwards[key] = _fuse(type(module).forward, fit, kernels)
        module.forward = MethodType(forwards[key], module)
        setattr(module, _FUSED, _name(fit))
    return model


def describe_kernels(model: PreTrainedModel, *, device_type: str) -> dict[str, str]:
    """Which kernel fits each class of module, and why none does, in words. Pure, but looks for Liger's files."""
    words = {"liger-kernel": " ".join(problems)} if (problems := kernel_problems(device_type)) else {}
    fused = {type(m).__name__: f"{getattr(m, _FUSED)}, in use" for m in model.modules() if hasattr(m, _FUSED)}
    return words | _words(plan_kernels(model)) | fused


def fitting_kernels(model: PreTrainedModel) -> tuple[str, ...]:
    """The names of the kernels that fit somewhere in `model`. Pure."""
    found = {_name(fit) for fit in plan_kernels(model).values() if not isinstance(fit, str)}
    return tuple(name for name in NAMES if name in found)


def kernel_problems(device_type: str) -> list[str]:
    """Why Liger's kernels cannot run on this kind of device, in words; empty if they can. Imports nothing."""
    problems = []
    if device_type != "cuda":
        problems.append(f"fused kernels run on CUDA, not on {device_type}.")
    if find_spec("liger_kernel") is None:
        problems.append(f"fused kernels need liger-kernel, which is not installed: {INSTALL}.")
    return problems


def plan_kernels(model: PreTrainedModel) -> dict[nn.Module, Fit | str]:
    """What was proven about each module that looks as if a kernel might fit, or why none does, in words. Pure.

    Modules alike are proven once. Weights are neither read nor copied, and no random state is drawn from.
    """
    proofs: dict[tuple[Any, ...], Fit | str] = {}
    plan: dict[nn.Module, Fit | str] = {}
    repeats = _prove_tables(model)
    for module in model.modules():
        if _looks_like_norm(module):
            key, prove = _traits(module), _prove_norm
        elif _looks_like_mlp(module):
            key, prove = _traits(module), _prove_gated
        elif _calls_attention(module):
            key, prove = (type(module),), partial(_prove_rope, repeats=repeats)
        else:
            continue
        if "forward" in vars(module):
            plan[module] = "it has a forward of its own already"
            continue
        if key not in proofs:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                proofs[key] = prove(module)
        plan[module] = proofs[key]
    return plan


def make_liger() -> Kernels:
    """Liger's kernels, imported now because they bring a compiler along.

    Raises:
        ValueError: if they cannot be imported.
    """
    try:
        from liger_kernel.ops.geglu import geglu_backward, geglu_forward  # pyright: ignore[reportMissingImports]
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # pyright: ignore[reportMissingImports]
        from liger_kernel.ops.rope import rope_backward, rope_forward  # pyright: ignore[reportMissingImports]
        from liger_kernel.ops.swiglu import swiglu_backward, swiglu_forward  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"fused kernels need liger-kernel 0.8.5 or newer ({error}): {INSTALL}.") from error

    def rms_norm(x: Tensor, weight_H: Tensor, eps: float, offset: float, casting: str) -> Tensor:
        # In place, it would write over a gradient that a residual connection hands to others too.
        return LigerRMSNormFunction.apply(x, weight_H, eps, offset, casting, False)

    return Kernels(
        rms_norm,
        lambda gate, up: _GatedMul.apply(gate, up, swiglu_forward, swiglu_backward),
        lambda gate, up: _GatedMul.apply(gate, up, geglu_forward, geglu_backward),
        lambda q, k, cos, sin, width: _Rotate.apply(q, k, cos, sin, width, rope_forward, rope_backward),
    )


class _GatedMul(torch.autograd.Function):
    """act(gate) * up by Liger's two passes, of which the second writes where it reads: it is given copies."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, run: Callable[..., Any], differentiate: Callable[..., Any]) -> Any:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.differentiate = differentiate
        return run(gate, up)[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] Decorated.
        (dout,) = grad_outputs
        gate, up = ctx.saved_tensors
        return *ctx.differentiate(gate.clone(), up.clone(), dout.contiguous()), None, None


class _Rotate(torch.autograd.Function):
    """Queries and keys, turned by Liger's two passes, which write where they read: both are given copies."""

    @staticmethod
    def forward(  # noqa: PLR0917 Autograd hands arguments on by position.
        ctx: Any,
        q_BNSD: Tensor,
        k_BKSD: Tensor,
        cos: Tensor,
        sin: Tensor,
        width: int,
        run: Callable[..., Any],
        differentiate: Callable[..., Any],
    ) -> Any:
        q, k, cos, sin = run(_copy_tokens_first(q_BNSD), _copy_tokens_first(k_BKSD), cos, sin, None, 1, width)
        ctx.save_for_backward(cos, sin)
        ctx.width, ctx.differentiate = width, differentiate
        return q, k

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] Decorated.
        cos, sin = ctx.saved_tensors
        dq, dk = map(_copy_tokens_first, grad_outputs)
        return *ctx.differentiate(dq, dk, cos, sin, None, 1, ctx.width), *(None,) * 5


def _copy_tokens_first(x_BNSD: Tensor) -> Tensor:
    """A copy whose memory is (B, S, N, D), which is how Liger reads it."""
    return x_BNSD.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)


def _fuse(forward: Callable[..., Any], fit: Fit, kernels: Kernels) -> Callable[..., Any]:
    """A forward for modules of which `fit` is proven."""
    match fit:
        case Norm():
            return _fuse_norm(fit, kernels.rms_norm)
        case Gated():
            return _fuse_gated(fit, kernels.silu_mul if fit.act == "silu" else kernels.gelu_mul)
        case Rope():
            assert isinstance(forward, FunctionType)
            return _rebind(forward, _fuse_rope(fit, kernels.rope))


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


def _fuse_gated(gated: Gated, act_mul: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def forward(self: nn.Module, *args: Tensor, **kwargs: Tensor) -> Tensor:
        (x,) = (*args, *kwargs.values())
        # Called as modules, so that hooks, adapters and sharding see them.
        gate, up, down = (getattr(self, name) for name in (gated.gate, gated.up, gated.down))
        return down(act_mul(gate(x), up(x)))

    return forward


def _fuse_rope(fit: Rope, rope: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A function of the signature of `fit.rotate`, for tensors on any device that `rope` runs on."""
    signature = inspect.signature(fit.rotate)

    def rotate(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        q, k, cos, sin = (given.arguments[name] for name in ("q", "k", "cos", "sin"))
        tokens_first = given.arguments.get("unsqueeze_dim", 1) == 2
        if tokens_first:
            q, k = q.transpose(1, 2), k.transpose(1, 2)
        width = 2 * cos.shape[-1] if fit.half else cos.shape[-1]
        if problem := _rope_problem((q, k, cos, sin), width, given.arguments.get("unsqueeze_dim", 1)):
            raise ValueError(problem)
        if fit.wide:
            cos, sin = cos.float(), sin.float()
        else:
            dtype = torch.promote_types(q.dtype, cos.dtype)
            q, k, cos, sin = (x.to(dtype) for x in (q, k, cos, sin))
        q, k = rope(q, k, cos, sin, width)
        return (q.transpose(1, 2), k.transpose(1, 2)) if tokens_first else (q, k)

    return rotate


def _rope_problem(inputs: tuple[Tensor, Tensor, Tensor, Tensor], width: int, unsqueeze_dim: int) -> str | None:
    """Why the kernel cannot turn these inputs, in words: it reads tables unchecked, and hands them no gradient."""
    q, k, cos, sin = inputs
    B, _, S, D = q.shape
    fits = (
        (k.shape[0], k.shape[2], k.shape[3]) == (B, S, D)
        and cos.shape == sin.shape
        and cos.shape[:-1] in {(1, S), (B, S)}
        and width <= D
        and unsqueeze_dim in (1, 2)
        and not cos.requires_grad
    )
    if fits:
        return None
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
    return (
        "the fused rope turns queries and keys by constant tables (1 or B, S, up to D); "
        f"got q, k, cos and sin of {shapes} with unsqueeze_dim {unsqueeze_dim}. "
        "Leave rope out of the names of use_kernels."
    )


def _rebind(forward: FunctionType, rotate: Callable[..., Any]) -> FunctionType:
    """The same code, in which `_ROTATE` means `rotate`.

    The name is private to transformers, and no argument or registry reaches the function behind it; a copy of the
    code's mapping of names does, and leaves the modeling file and other models alone.
    """
    names = {**forward.__globals__, _ROTATE: rotate}
    rebound = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    rebound.__kwdefaults__ = forward.__kwdefaults__
    return rebound


def _looks_like_norm(module: nn.Module) -> bool:
    params = tuple(module.parameters())
    weighs = len(params) == 1 and params[0].ndim == 1 and hasattr(module, "weight")
    return next(module.children(), None) is None and (weighs or "Norm" in type(module).__name__)


def _looks_like_mlp(module: nn.Module) -> bool:
    return len(_linears(module)) == 3 or any(part in type(module).__name__ for part in ("MLP", "Experts"))


def _calls_attention(module: nn.Module) -> bool:
    names = _names_in(module)
    return _ROTATE in names or (is_attention(module) and "ALL_ATTENTION_FUNCTIONS" in names)


def _linears(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}


def _prove_norm(module: nn.Module) -> Norm | str:
    weight_H = getattr(module, "weight", None)
    if not isinstance(weight_H, Tensor) or weight_H.ndim != 1 or len(tuple(module.parameters())) != 1:
        return "it has something else than one weight, a value a feature"
    if len(inspect.signature(type(module).forward).parameters) != 2:
        return "it takes more than one input"
    generator = torch.Generator().manual_seed(0)
    probe = _copy_probe(module, {}, generator)
    # Only where the mean of squares is about as small as eps does eps show.
    x = torch.stack([_draw((4, weight_H.shape[0]), generator) * scale for scale in (1e-3, 1e-2, 1.0, 30.0, 1e3)])
    options = [
        (value, offset)
        for value in {v for v in vars(module).values() if isinstance(v, float) and 0 < v < 1}
        for offset in (0.0, 1.0)
    ]
    try:
        out = type(module).forward(probe, x)
        found = [each for each in options if _equals(out, _rms_norm(x, probe.weight, *each, "gemma"))]
        if len(found) != 1:
            return "it computes something else than x * rsqrt(mean(x^2) + eps) * weight, or * (1 + weight)"
        probe = probe.to(torch.bfloat16)
        x = x.to(torch.bfloat16)
        out = type(module).forward(probe, x)
    except _UNFIT as error:
        return f"it fails on a plain input ({type(error).__name__})"
    for casting in ("llama", "gemma"):
        if _equals_in_bits(out, _rms_norm(x, probe.weight, *found[0], casting)):
            return Norm(*found[0], casting)
    return "it rounds elsewhere than a norm of Llama or of Gemma"


def _rms_norm(x: Tensor, weight_H: Any, eps: float, offset: float, casting: str) -> Tensor:
    wide = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    if casting == "llama":
        return wide.to(x.dtype) * (offset + weight_H)
    return (wide * (offset + weight_H.float())).to(x.dtype)


def _prove_gated(module: nn.Module) -> Gated | str:
    linears = _linears(module)
    if len(linears) != 3:
        return f"it has {len(linears)} Linear modules, not three for gate, up and down"
    if len(inspect.signature(type(module).forward).parameters) != 2:
        return "it takes more than one input"
    generator = torch.Generator().manual_seed(0)
    errors: set[str] = set()
    acts: dict[Literal["silu", "gelu"], Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": _tanh_gelu}
    for gate, up, down in permutations(linears):
        wide, narrow = _dims(linears[gate]), _dims(linears[down])
        if _dims(linears[up]) != wide or narrow != wide[::-1]:
            continue
        # Small projections prove the code around them as well as large ones.
        H, I = (8, 8) if wide == narrow else (8, 12)
        sizes = {gate: (H, I), up: (H, I), down: (I, H)}
        replaced = {linears[name]: _small(linears[name], *sizes[name], generator) for name in linears}
        probe = _copy_probe(module, replaced, generator)
        try:
            for act, function in acts.items():
                if all(
                    _equals(type(module).forward(probe, x), replaced[linears[down]](function(a) * b))
                    for scale in (0.1, 1.0, 30.0)
                    for x in [_draw((2, 16, H), generator) * scale]
                    for a, b in [(replaced[linears[gate]](x), replaced[linears[up]](x))]
                ):
                    return Gated(gate, up, down, act)
        except _UNFIT as error:
            errors.add(type(error).__name__)
    failed = f" (it fails on a plain input: {', '.join(sorted(errors))})" if errors else ""
    return f"it computes something else than down(act(gate(x)) * up(x)) with SiLU or the tanh form of GELU{failed}"


def _tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _dims(linear: nn.Linear) -> tuple[int, int]:
    return linear.in_features, linear.out_features


def _small(linear: nn.Linear, dim_in: int, dim_out: int, generator: torch.Generator) -> nn.Linear:
    small = nn.Linear(dim_in, dim_out, bias=linear.bias is not None, device="meta").to_empty(device="cpu")
    for parameter in small.parameters():
        parameter.normal_(generator=generator).mul_(0.5)
    return small


def _prove_rope(module: nn.Module, repeats: bool | str) -> Rope | str:
    forward = type(module).forward
    called = {name for name in _names_in(module) if name.startswith("apply_") and "rotary" in name}
    if _ROTATE not in called:
        return f"its forward does not call {_ROTATE}"
    if others := sorted(called - {_ROTATE}):
        return f"its forward chooses between {_ROTATE} and {', '.join(others)}"
    if not isinstance(forward, FunctionType) or hasattr(forward, "__wrapped__"):
        return "its forward is decorated, so its code cannot be bound anew without losing that"
    rotate: Any = forward.__globals__.get(_ROTATE)
    half = _prove_rotate(rotate)
    wide = None if half is None else _is_wide(rotate, half)
    reasons = (
        (half is None, f"its {_ROTATE} turns something else than the two halves of a head"),
        (wide is None, f"its {_ROTATE} rounds in its own way"),
        (not _hands_tables_on(forward), "its forward may change the position tables before it uses them"),
        (isinstance(repeats, str), repeats),
        (not half and not repeats, "the second half of its position tables does not repeat the first"),
    )
    return next((str(why) for holds, why in reasons if holds), None) or Rope(rotate, bool(half), bool(wide))


def _prove_rotate(rotate: Callable[..., Any]) -> bool | None:
    """Whether the tables of `rotate` have one column for two features, if it is the standard form; None if not."""
    try:
        names = list(inspect.signature(rotate).parameters)
    except (TypeError, ValueError):
        return None
    if names[:4] != ["q", "k", "cos", "sin"] or not set(names[4:]) <= _OPTIONS:
        return None
    shapes = [(D, half) for half in (False, True) for D in (8, 12)]
    outcomes = [half for D, half in shapes if _turns_halves(rotate, names, D, D, half)]
    if outcomes not in ([False, False], [True, True]):
        return None
    half = outcomes[0]
    # Narrower tables turn a part of the head, if anything.
    partial = _turns_halves(rotate, names, 12, 8, half)
    return half if partial is None or partial else None


def _turns_halves(rotate: Callable[..., Any], names: list[str], D: int, width: int, half: bool) -> bool | None:
    """Whether `rotate` gives the standard form, in either layout of tokens and heads; None if it refuses."""
    q, k, cos, sin = _rope_probe(D, width, half, torch.float32)
    want = [_turn(x, cos, sin, width) for x in (q, k)]
    calls: list[tuple[dict[str, Any], bool]] = [({}, False)]
    if "position_ids" in names:
        calls.append(({"position_ids": torch.tensor([[3, 1, 4, 1, 5]], device="cpu")}, False))
    if "unsqueeze_dim" in names:
        calls += [({"unsqueeze_dim": 1}, False), ({"unsqueeze_dim": 2}, True)]
    try:
        for options, tokens_first in calls:
            inputs = [x.transpose(1, 2) if tokens_first else x for x in (q, k)]
            got = rotate(*inputs, cos, sin, **options)
            got = [x.transpose(1, 2) if tokens_first else x for x in got]
            if len(got) != 2 or not all(_equals(*pair) for pair in zip(got, want, strict=True)):
                return False
    except _UNFIT:
        return None
    return True


def _rope_probe(D: int, width: int, half: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k = (_draw((2, heads, 5, D), generator).to(dtype) for heads in (4, 2))
    cos, sin = (_draw((2, 5, width // 2), generator).to(dtype) for _ in range(2))
    return (q, k, cos, sin) if half else (q, k, torch.cat([cos, cos], -1), torch.cat([sin, sin], -1))


def _turn(x_BNSD: Tensor, cos: Tensor, sin: Tensor, width: int) -> Tensor:
    cos, sin = (x[:, None, :, : width // 2] for x in (cos, sin))
    left, right = x_BNSD[..., : width // 2], x_BNSD[..., width // 2 : width]
    return torch.cat([left * cos - right * sin, right * cos + left * sin, x_BNSD[..., width:]], dim=-1)


def _is_wide(rotate: Callable[..., Any], half: bool) -> bool | None:
    """Whether `rotate` computes in fp32 and casts back; None if it rounds in neither way."""
    q, k, cos, sin = _rope_probe(64, 64, half, torch.bfloat16)
    out = rotate(q, k, cos, sin)[0]
    if _equals_in_bits(out, _turn(q, cos, sin, 64)):
        return False
    wide = _turn(q.float(), cos.float(), sin.float(), 64).to(q.dtype)
    exact = rotate(q, k, cos.float(), sin.float())[0]
    return True if _equals_in_bits(out, wide) and _equals_in_bits(exact, wide) else None


def _hands_tables_on(forward: FunctionType) -> bool:
    """Whether the tables that `forward` turns by are those that it was given, unchanged. Reads its source."""
    try:
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(forward))).body
    except (OSError, TypeError):
        return False
    assert isinstance(function, ast.FunctionDef)
    nodes = list(ast.walk(function))
    calls = [node for node in nodes if isinstance(node, ast.Call) and _is_name(node.func, _ROTATE)]
    tables = [table for call in calls for table in call.args[2:4]]
    names = {table.id for table in tables if isinstance(table, ast.Name)}
    stored = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    given = {each.arg for each in (*function.args.args, *function.args.kwonlyargs)} - set(stored)
    unpacked = [
        target.id
        for node in nodes
        if isinstance(node, ast.Assign) and (_is_none(node.value) or any(_is_name(node.value, name) for name in given))
        for pair in node.targets
        if isinstance(pair, ast.Tuple)
        for target in pair.elts
        if isinstance(target, ast.Name)
    ]
    plain = bool(calls) and len(tables) == 2 * len(calls) and all(isinstance(table, ast.Name) for table in tables)
    return plain and all(name in given or unpacked.count(name) == stored.count(name) > 0 for name in names)


def _is_none(node: ast.expr) -> bool:
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return all(isinstance(part, ast.Constant) and part.value is None for part in parts)


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _prove_tables(model: PreTrainedModel) -> bool | str:
    """Whether all position tables of `model` repeat their first half; why that cannot be told, in words."""
    repeats = []
    for module in model.modules():
        if not any("inv_freq" in name for name, _ in module.named_buffers(recurse=False)):
            continue
        probe = _copy_probe(module, {}, torch.Generator().manual_seed(0))
        kinds = getattr(module, "layer_types", None)
        for kind in kinds if isinstance(kinds, (list, tuple, set)) else [None]:
            options = {} if kind is None else {"layer_type": kind}
            if (tables := _encode(probe, options)) is not None:
                repeats.append(all(torch.equal(*x.chunk(2, dim=-1)) for x in tables))
    return all(repeats) if repeats else "no module of its model gives position tables of a known form"


def _encode(probe: nn.Module, options: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """The tables of a module of position encodings, or None if it is not one of text."""
    position_BS = torch.tensor([[0, 1, 2, 5]], device="cpu")
    for positions in (position_BS, position_BS.expand(3, 1, 4)):
        try:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                tables = type(probe).forward(probe, torch.ones(1, 4, 8, device="cpu"), positions, **options)
        except _UNFIT:
            continue
        if isinstance(tables, tuple) and len(tables) == 2 and all(isinstance(x, Tensor) for x in tables):
            return tables
    return None


def _copy_probe(module: nn.Module, replaced: dict[nn.Linear, nn.Linear], generator: torch.Generator) -> Any:
    """A copy of `module` on the CPU in fp32 with random weights, which neither reads nor copies those of `module`."""
    memo: dict[int, Any] = {id(old): new for old, new in replaced.items()}
    kept = {id(x) for old in replaced for x in old.parameters()}
    for x in (*module.parameters(), *module.buffers()):
        if id(x) not in kept:
            drawn = _draw(x.shape, generator)
            memo[id(x)] = nn.Parameter(drawn) if isinstance(x, nn.Parameter) else drawn
    memo |= {id(value): value for value in vars(module).values() if isinstance(value, PreTrainedConfig)}
    return copy.deepcopy(module, memo)


def _draw(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, device="cpu", dtype=torch.float32)


def _equals(got: Any, want: Tensor) -> bool:
    """To the precision of fp32, each row of the first dim by its own scale."""
    if not isinstance(got, Tensor) or got.shape != want.shape or got.dtype != want.dtype:
        return False
    return all(bool((a - b).abs().max() <= 1e-5 * b.abs().max()) for a, b in zip(got, want, strict=True))


def _equals_in_bits(got: Any, want: Tensor) -> bool:
    """But for the rare rounding that another order of operations tips over; casts elsewhere tip over a third."""
    if not isinstance(got, Tensor) or got.shape != want.shape or got.dtype != want.dtype:
        return False
    return bool((got == want).float().mean() > 0.98)


def _traits(module: nn.Module) -> tuple[Any, ...]:
    """What modules must share to be proven by one of them."""
    plain = (bool, int, float, str)
    own = tuple((name, v if isinstance(v, plain) else id(v)) for name, v in vars(module).items() if name[0] != "_")
    return type(module), repr(module), own, tuple(x.shape for x in module.parameters(recurse=False))


def _names_in(module: nn.Module) -> tuple[str, ...]:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return () if code is None else code.co_names


def _name(fit: Fit) -> str:
    return {Norm: "rms_norm", Gated: "swiglu", Rope: "rope"}[type(fit)]


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
            return f"swiglu ({'SiLU' if fit.act == 'silu' else 'tanh GELU'})"
        case Rope():
            return f"rope ({'fp32' if fit.wide else 'in the dtype it is given'})"
        case _:
            return f"not fused: {fit}"


def _unknown(names: Sequence[str]) -> str | None:
    """What is wrong with the names of kernels, in words."""
    if not (unknown := [name for name in names if name not in NAMES]):
        return None
    near = get_close_matches(unknown[0], NAMES, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"there is no kernel {', '.join(map(repr, unknown))}; there are {', '.join(NAMES)}{hint}"
