"""Laws of fused kernels in towers: patches are turned as transformers turn them, where that is proven."""

import copy
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
import torch
from senses import make_model
from test_kernels import close, equal, in_bf16, torch_kernels
from torch import Tensor, nn
from transformers.models.qwen2_vl.modeling_qwen2_vl import VisionAttention, apply_rotary_pos_emb_vision, rotate_half

from omni_models.fused import make_triton
from omni_models.kernels import apply_kernels, describe_kernels, fitting_kernels, use_kernels
from omni_models.proofs_rope import ROTATE_FLAT, Rope
from omni_models.rows import has_triton
from omni_models.turning import fuse_rope

TURNS = "rope (fp32, of patches, heads of 8 padded to 32 in 16 bits)"
FOUND = {
    "qwen2_vl": {"VisionAttention": TURNS},
    "qwen2_5_vl": {"Qwen2_5_VLVisionAttention": TURNS, "Qwen2_5_VLMLP": "swiglu (SiLU)"},
    "qwen3_vl": {"Qwen3VLVisionAttention": TURNS},
    "glm4v": {"Glm4vVisionAttention": TURNS, "Glm4VisionMlp": "swiglu (SiLU)"},
    "qwen2_5_omni_thinker": {
        "Qwen2_5OmniVisionAttention": "rope (fp32, of patches)",
        "Qwen2_5OmniMLP": "swiglu (SiLU)",
    },
}
"""What is recognised in the tower of each family."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def make_tower(family: str) -> nn.Module:
    """A tower of which no weight is a neutral one, within its model."""
    model = make_model(family)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.1 * torch.randn(param.shape, generator=generator))
    return model


def tower_of(model: nn.Module) -> nn.Module:
    return next(module for name, module in model.named_modules() if name.split(".")[-1] == "visual")


def run(model: nn.Module, device: str = "cpu") -> tuple[Tensor, dict[str, Tensor]]:
    """What the tower makes of two images, and its gradients, in fp32."""
    tower = tower_of(model)
    generator = torch.Generator().manual_seed(1)
    grids = torch.tensor([[1, 4, 6], [1, 8, 4]], device=device)
    patches = torch.randn(56, 96, generator=generator).to(device, next(tower.parameters()).dtype)
    out = tower(patches, grid_thw=grids)
    features = out.last_hidden_state if out.pooler_output is None else out.pooler_output
    (features.float() * torch.randn(features.shape, generator=generator).to(device)).sum().backward()
    grads = {name: param.grad.float() for name, param in tower.named_parameters() if param.grad is not None}
    return features.detach().float(), grads


def skip_decorated(model: nn.Module, family: str) -> None:
    """Where this transformers decorates the attention of a tower, that is told, and its turns are not fused."""
    words = describe_kernels(model, device_type="cuda")[next(iter(FOUND[family]))]
    if "its forward is decorated" in words:
        assert any(hasattr(type(module).forward, "__wrapped__") for module in tower_of(model).modules())
        pytest.skip(f"in this transformers: {words}")


@pytest.mark.parametrize("family", FOUND)
def test_what_is_recognised_in_each_tower(family: str) -> None:
    skip_decorated(make_model(family), family)
    words = describe_kernels(make_model(family), device_type="cuda")
    assert FOUND[family].items() <= words.items()


@pytest.mark.parametrize("family", FOUND)
def test_a_fused_tower_computes_what_the_plain_one_does(family: str) -> None:
    model, calls = make_tower(family), []
    skip_decorated(model, family)
    plain = copy.deepcopy(model)
    model = apply_kernels(model, torch_kernels(calls), fitting_kernels(model))
    equal(run(model), run(plain))
    assert calls.count("rope") == 2, "a call for each block of the tower"
    assert describe_kernels(model, device_type="cuda").items() >= {(next(iter(FOUND[family])), "rope, in use")}


def draw_patches(dtype: torch.dtype, device: str = "cpu") -> tuple[list[Tensor], list[Tensor]]:
    """Queries and keys out of one projection, and tables in fp32."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(9, 3, 5, 80, generator=generator).to(device, dtype)
    angles = 3 * torch.randn(9, 40, generator=generator).repeat(1, 2).to(device)
    return [x.detach().requires_grad_() for x in qkv.unbind(1)[:2]], [angles.cos(), angles.sin()]


def turn_and_back(rotate: Callable[..., Any], inputs: tuple[list[Tensor], list[Tensor]]) -> list[list[Tensor]]:
    heads, tables = inputs
    outs = rotate(*heads, *tables)
    grads = torch.autograd.grad(outs, heads, [x.detach().flip(0) for x in outs])
    return [list(outs), list(grads)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_patches_are_turned_to_the_same_bits(dtype: torch.dtype) -> None:
    rotate = fuse_rope(Rope(apply_rotary_pos_emb_vision, half=False, wide=True, flat=True), make_triton().rope)
    inputs = draw_patches(dtype)
    (got, d_got), (want, d_want) = (turn_and_back(each, inputs) for each in (rotate, apply_rotary_pos_emb_vision))
    for have, should in zip(got, want, strict=True):
        assert have.dtype == dtype and torch.equal(have, should)
    if dtype == torch.float32:
        assert all(map(torch.equal, d_got, d_want))
    # By name, by narrow tables, and from other strides.
    (q, k), tables = inputs
    cos, sin = (x.to(dtype) for x in tables)
    again = rotate(sin=sin, cos=cos, k=k.contiguous(), q=q)
    for have, should in zip(again, apply_rotary_pos_emb_vision(q, k, cos, sin), strict=True):
        assert torch.equal(have, should)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_rows_of_patches_are_turned_to_the_same_bits(rows: int, shared: bool) -> None:
    rotate = fuse_rope(Rope(apply_rotary_pos_emb_vision, half=False, wide=True, flat=True), make_triton().rope)
    heads, tables = draw_patches(torch.bfloat16)
    heads = [torch.stack([x.roll(i, 0) for i in range(rows)]) for x in heads]
    if not shared:
        tables = [torch.stack([x.roll(-i, 0) for i in range(rows)]) for x in tables]
    for have, should in zip(rotate(*heads, *tables), apply_rotary_pos_emb_vision(*heads, *tables), strict=True):
        assert torch.equal(have, should)


def turning(rotate: Callable[..., Any]) -> type[nn.Module]:
    """A class of attention whose forward calls `rotate` by the name of transformers."""
    plain = VisionAttention.forward
    names = {**plain.__globals__, ROTATE_FLAT: rotate}
    forward = FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
    return type("Other", (VisionAttention,), {"forward": forward})


def interleaved(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    def turned(x: Tensor) -> Tensor:
        return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)

    return tuple(x * cos.unsqueeze(-2) + turned(x) * sin.unsqueeze(-2) for x in (q, k))


def heads_first(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    return tuple(x * cos + rotate_half(x) * sin for x in (q, k))


def without_rows(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    return tuple(x * cos[:, None] + rotate_half(x) * sin[:, None] for x in (q, k))


def one_alone(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    return apply_rotary_pos_emb_vision(q, k, cos, sin)[0], k


def backwards(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    return apply_rotary_pos_emb_vision(q, k, cos, -sin)


def rounding(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    return apply_rotary_pos_emb_vision(q, k, (cos / 3).to(q.dtype) * 3, sin)


def with_more(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, scale: float = 1.0) -> tuple[Tensor, ...]:
    return apply_rotary_pos_emb_vision(q, k, cos * scale, sin * scale)


@pytest.mark.parametrize(
    "rotate", [interleaved, heads_first, without_rows, one_alone, backwards, with_more, rounding, None]
)
def test_a_function_of_that_name_that_does_something_else_is_not_recognised(rotate: Any) -> None:
    model = make_model("qwen2_vl")
    tower_of(model).blocks[1].attn.__class__ = turning(rotate)
    words = describe_kernels(model, device_type="cuda")
    why = "rounds in its own way" if rotate is rounding else "turns something else than the two halves of a head"
    assert words["Other"] == f"not fused: its {ROTATE_FLAT} {why}"
    assert words["VisionAttention"] == TURNS


def test_a_function_that_computes_in_its_own_dtype_is_fused_as_such() -> None:
    def narrow(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        return tuple(x * cos.unsqueeze(-2) + rotate_half(x) * sin.unsqueeze(-2) for x in (q, k))

    model, calls = make_tower("qwen2_vl"), []
    for block in tower_of(model).blocks:
        block.attn.__class__ = turning(narrow)
    plain = copy.deepcopy(model)
    assert describe_kernels(model, device_type="cuda")["Other"] == TURNS.replace("fp32", "in the dtype it is given")
    equal(run(apply_kernels(model, torch_kernels(calls), ("rope",))), run(plain))
    assert calls == ["rope"] * 2


def test_a_tower_whose_tables_do_not_repeat_keeps_its_rope() -> None:
    model = make_model("qwen2_vl")
    rotary = type(tower_of(model).rotary_pos_emb)

    class Interleaved(rotary):
        def recomposition_frequencies(self, freq):
            return super().recomposition_frequencies(freq)[..., : freq[:, 0].shape[-1] * 2].repeat_interleave(2, -1)

    tower_of(model).rotary_pos_emb.__class__ = Interleaved
    words = describe_kernels(model, device_type="cuda")["VisionAttention"]
    assert words == "not fused: the second half of its position tables does not repeat the first"
    del tower_of(model).rotary_pos_emb
    words = describe_kernels(model, device_type="cuda")["VisionAttention"]
    assert words == "not fused: no module of its model gives position tables of a known form"


def test_two_towers_do_not_disturb_one_another() -> None:
    model, other, calls = make_tower("qwen2_vl"), make_tower("qwen2_vl"), []
    apply_kernels(model, torch_kernels(calls), ("rope",))
    run(other)
    assert calls == []
    assert VisionAttention.forward.__globals__[ROTATE_FLAT] is apply_rotary_pos_emb_vision


@pytest.mark.parametrize("shape", [(5, 80), (9, 82), (80,), (1, 9, 80)])
def test_tables_that_do_not_match_the_patches_are_refused(shape: tuple[int, ...]) -> None:
    rotate = fuse_rope(Rope(apply_rotary_pos_emb_vision, half=False, wide=True, flat=True), make_triton().rope)
    heads, _ = draw_patches(torch.float32)
    with pytest.raises(ValueError, match=r"got q, k, cos and sin of .* Leave rope out of the names"):
        rotate(*heads, torch.ones(shape), torch.ones(shape))


@pytest.mark.gpu
@pytest.mark.skipif(not has_triton(), reason="needs triton")
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_patches_are_turned_to_the_same_bits(dtype: torch.dtype) -> None:
    rotate = fuse_rope(Rope(apply_rotary_pos_emb_vision, half=False, wide=True, flat=True), make_triton().rope)
    inputs = draw_patches(dtype, "cuda")
    (got, d_got), (want, d_want) = (turn_and_back(each, inputs) for each in (rotate, apply_rotary_pos_emb_vision))
    assert all(map(torch.equal, got, want))
    assert all(map(torch.equal, d_got, d_want))


@pytest.mark.gpu
@pytest.mark.skipif(not has_triton(), reason="needs triton")
@pytest.mark.parametrize("family", FOUND)
def test_fused_towers_are_as_exact_as_plain_ones_in_bf16(family: str) -> None:
    exact = make_tower(family).to("cuda")
    plain, fused = (copy.deepcopy(exact) for _ in range(2))
    fused = use_kernels(fused, fitting_kernels(fused), device_type="cuda")
    want, eager, got = run(exact, "cuda"), run(in_bf16(plain), "cuda"), run(in_bf16(fused), "cuda")
    assert close(got[0], eager[0], want[0], 1e-3)
    assert got[1].keys() == want[1].keys()
    for name, grad in want[1].items():
        assert close(got[1][name], eager[1][name], grad, 1e-2), name
