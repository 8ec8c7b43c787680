"""Inputs for fused kernels, what formulas say of them in fp64, and what functions say.

A case is a dict of plain values: `do` names the kernel, `inputs` are differentiated, `options` are not.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from omni_models.fused import Kernels

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def make_cases() -> list[dict[str, Any]]:
    """Of every function in every dtype: odd sizes, sizes beyond a block, none at all, and any strides."""
    return [case for dtype in DTYPES for case in (*_gates(dtype), *_norms(dtype), *_turns(dtype))]


def by_functions(case: dict[str, Any], kernels: Kernels, device: str) -> dict[str, Any]:
    """What one of the kernels gives, and its gradients, twice.

    Raises:
        AssertionError: if anything that was given was written to, or the gradients are others the second time.
    """
    inputs = [_copy(x, device).requires_grad_() for x in case["inputs"]]
    options = [_copy(x, device) if isinstance(x, Tensor) else x for x in case["options"]]
    d_outs = [_copy(x, device) for x in case["d_outs"]]
    given = [*inputs, *(x for x in options if isinstance(x, Tensor)), *d_outs]
    before = [x.detach().clone() for x in given]
    outs = getattr(kernels, case["do"])(*inputs, *options)
    outs = [outs] if isinstance(outs, Tensor) else list(outs)
    first = torch.autograd.grad(outs, inputs, d_outs, retain_graph=True)
    again = torch.autograd.grad(outs, inputs, d_outs)
    assert all(map(torch.equal, given, before)), "something given was written to"
    assert all(map(torch.equal, first, again)), "the second gradients are others"
    return {"outs": [x.detach().cpu() for x in outs], "grads": [x.cpu() for x in first]}


def _copy(x: Tensor, device: str) -> Tensor:
    """A copy with the same strides, which `Tensor.to` keeps only where they leave no gaps."""
    memory = x.new_empty(0).set_(x.untyped_storage()).to(device, copy=True)
    return memory.as_strided(x.shape, x.stride(), x.storage_offset())


def check(case: dict[str, Any], found: dict[str, Any], *, cuts_bf16: bool = False) -> None:
    """That each value is the exact one, rounded once.

    What is rounded in between, the formulas round, too: a value beside the border of that is let go by.

    Args:
        case: what was asked.
        found: what `by_functions` gave.
        cuts_bf16: whether bf16 was cut off instead of rounded, as Triton's interpreter does.
    """
    outs, inputs = _by_formula(case)
    exact = torch.autograd.grad(outs, inputs, [x.to(y.dtype) for x, y in zip(case["d_outs"], outs, strict=True)])
    for name, wants, likes in (("outs", outs, case["d_outs"]), ("grads", exact, case["inputs"])):
        for have, want, like in zip(found[name], (x.detach() for x in wants), likes, strict=True):
            assert (have.shape, have.dtype) == (like.shape, like.dtype), (case["name"], name)
            if not have.numel():
                continue
            far = (have.double() - want.double()).abs()
            half, most = torch.finfo(have.dtype).eps / 2, want.abs().max()
            if cuts_bf16 and have.dtype == torch.bfloat16:
                assert far.norm() <= 1e-2 * want.double().norm(), (case["name"], name)
                continue
            within = far <= (half + 1e-5) * want.abs() + 2e-6 * most
            assert (~within).sum() <= far.numel() / 1000, (case["name"], name, float(far.max()))
            assert (far <= 5 * half * want.abs() + 2 * half * most + 2e-6 * most).all(), (case["name"], name)


def _by_formula(case: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """What comes out, and the inputs to differentiate by."""
    turns = case["do"] == "rope"
    # Turning rounds every product, as transformers do; there it is they who say what is right.
    inputs = [(x.detach() if turns and x.dtype != torch.float32 else x.detach().double()) for x in case["inputs"]]
    inputs = [x.requires_grad_() for x in inputs]
    outs = {"silu_mul": _gate, "gelu_mul": _gate, "rms_norm": _norm, "rope": _turn}[case["do"]](case, *inputs)
    return outs, inputs


def _draw(*shape: int, seed: int, dtype: torch.dtype, spread: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread).to(dtype)


def _gates(dtype: torch.dtype) -> list[dict[str, Any]]:
    draw = partial(_draw, dtype=dtype, spread=3.0)
    shapes = {"odd": (3, 7, 13), "blocks": (2, 1024), "more": (5, 1001), "none": (0, 8), "one": (1, 1)}
    tensors = {name: [draw(*shape, seed=i) for i in range(3)] for name, shape in shapes.items()}
    tensors["strides"] = [draw(9, 300, seed=0).T, draw(300, 18, seed=1)[:, ::2], draw(300, 1, seed=2).expand(300, 9)]
    tensors["extreme"] = [torch.tensor([-200.0, -30.0, 0.0, 30.0, 200.0]).to(dtype) for _ in range(3)]
    return [
        {"name": f"{act} {name} {dtype}", "do": act, "inputs": [gate, up], "options": [], "d_outs": [d_out]}
        for act in ("silu_mul", "gelu_mul")
        for name, (gate, up, d_out) in tensors.items()
    ]


def _gate(case: dict[str, Any], gate: Tensor, up: Tensor) -> list[Tensor]:
    return [(F.silu(gate) if case["do"] == "silu_mul" else F.gelu(gate, approximate="tanh")) * up]


def _norms(dtype: torch.dtype) -> list[dict[str, Any]]:
    draw = partial(_draw, dtype=dtype)
    shapes = {
        "heads": (3, 87, 128),
        "odd": (7, 9, 65),
        "wide": (5, 4099),
        "wider": (37, 8192),
        "widest": (3, 16384),
        "tiny": (4, 3),
        "none": (0, 128),
    }
    tensors = {name: [draw(*shape, seed=i) for i in range(2)] for name, shape in shapes.items()}
    # A slice of a wider projection; heads before tokens; features apart; a gradient that is one value.
    tensors["slice"] = [draw(2, 5, 300, seed=0)[..., 7:135], draw(2, 5, 128, seed=1)]
    tensors["turned"] = [draw(2, 5, 3, 64, seed=0).transpose(1, 2), draw(2, 5, 3, 64, seed=1).transpose(1, 2)]
    tensors["apart"] = [draw(64, 6, seed=0).T, draw(6, 1, seed=1).expand(6, 64)]
    cases = []
    for name, (x, d_out) in tensors.items():
        for casting, offset in (("llama", 0.0), ("gemma", 1.0), ("llama", 1.0)):
            weight = draw(x.shape[-1], seed=2)
            options = {"options": [1e-6, offset, casting], "d_outs": [d_out]}
            cases += [{"name": f"norm {name} {casting} {dtype}", "do": "rms_norm", "inputs": [x, weight], **options}]
    x, weight = draw(6, 96, seed=0) * 1e-3, draw(96, seed=1).float()
    rest = {"options": [1e-3, 1.0, "gemma"], "d_outs": [draw(6, 96, seed=2)]}
    mixed = {"name": f"norm of fp32 weight, large eps {dtype}", "do": "rms_norm", "inputs": [x, weight], **rest}
    frozen = {"name": f"norm of frozen weight {dtype}", "inputs": [x], "options": [weight, *rest["options"]]}
    return [*cases, mixed, mixed | frozen]


def _norm(case: dict[str, Any], x: Tensor, *weight: Tensor) -> list[Tensor]:
    weight_H, eps, offset, casting = (*weight, *case["options"])
    normed, scale = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps), offset + weight_H
    if casting == "llama":
        dtype = case["inputs"][0].dtype
        normed, scale = (y + (y.to(dtype) - y).detach() for y in (normed, scale))
    return [normed * scale]


def _turns(dtype: torch.dtype) -> list[dict[str, Any]]:
    """(B, S, N, K, D, width, tables, columns of a table, are tables fp32, are heads first in memory)"""
    kinds = {
        "plain": (2, 5, 4, 2, 16, 16, 1, 16, False, False),
        "many heads, tables by row": (2, 3, 20, 3, 128, 128, 2, 128, False, False),
        "half tables, fp32": (2, 3, 3, 1, 15, 12, 2, 6, True, False),
        "part of a head": (2, 3, 3, 1, 40, 12, 1, 12, False, True),
        "large heads, half of each": (1, 2, 5, 5, 256, 128, 1, 128, True, False),
        "patches of a tower": (1, 9, 16, 16, 80, 80, 1, 80, True, False),
        "no tokens": (2, 0, 4, 2, 16, 16, 1, 16, False, False),
    }
    cases = []
    for name, (B, S, N, K, D, width, tables, columns, wide, heads_first) in kinds.items():
        angles = _draw(tables, S, width // 2, seed=0, dtype=torch.float32, spread=3.0).repeat(1, 1, 2)
        cos, sin = (x.to(torch.float32 if wide else dtype) for x in (angles.cos(), angles.sin()))
        # Queries and keys lie in one projection; gradients lie as attention gives them, or any other way.
        both = _draw(B, S, N + K, D, seed=1, dtype=dtype).transpose(1, 2)
        q, k = both.split([N, K], dim=1)
        d_q, d_k = (_draw(B, S, heads, D, seed=2, dtype=dtype).transpose(1, 2) for heads in (N, K))
        if heads_first:
            q, k, d_q = (x.contiguous() for x in (q, k, d_q))
            d_k = d_k[..., :1].expand(d_k.shape)
        options = [cos[..., :columns], sin[..., :columns], width]
        tensors = {"inputs": [q, k], "options": options, "d_outs": [d_q, d_k], "whole": [cos, sin]}
        cases += [{"name": f"rope {name} {dtype}", "do": "rope", **tensors}]
    return cases


def _turn(case: dict[str, Any], q: Tensor, k: Tensor) -> list[Tensor]:
    cos, sin = case["whole"]
    width = case["options"][2]
    dtype = torch.promote_types(q.dtype, cos.dtype)
    cos, sin = cos.to(dtype), sin.to(dtype)
    heads = [x[..., :width].to(dtype) for x in (q, k)]
    turned = apply_rotary_pos_emb(*heads, cos, sin)
    return [torch.cat([x.to(y.dtype), y[..., width:]], dim=-1) for x, y in zip(turned, (q, k), strict=True)]
