"""Laws of fused kernels: only what is proven is replaced, it computes the same, and nothing is written over."""

import copy
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from shapes import FAMILIES, LINEAR_FAMILIES, interpret, make_config
from test_attention import make_rows
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

from omni_models import build_model, use_attention, use_experts
from omni_models.fused import Kernels, make_triton
from omni_models.kernels import NAMES, apply_kernels, describe_kernels, fitting_kernels, use_kernels

READY = find_spec("triton") is not None
NORM, ROPE, SILU, GELU = (
    "rms_norm (eps 1e-06, ",
    "rope (in the dtype it is given)",
    "swiglu (SiLU)",
    "swiglu (tanh GELU)",
)
LLAMA, GEMMA = f"{NORM}weight, cast as llama)", f"{NORM}1 + weight, cast as gemma)"
LIKE_LLAMA = {"RMSNorm": LLAMA, "Attention": ROPE, "MLP": SILU}
LIKE_GEMMA = {"RMSNorm": GEMMA, "Attention": ROPE, "MLP": GELU}
EXPERTS = "swiglu (SiLU, of experts)"
GATED = "not fused: it takes more than one input"
LIKE_QWEN = {"RMSNorm": GEMMA, "RMSNormGated": GATED, "Attention": ROPE, "MLP": SILU}
FOUND = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "granite"), LIKE_LLAMA),
    **dict.fromkeys(("gemma2", "gemma3"), LIKE_GEMMA),
    "phi3": {
        "RMSNorm": "rms_norm (eps 1e-05, weight, cast as llama)",
        "Attention": ROPE,
        "MLP": "not fused: it has 2 Linear modules, not three for gate, up and down",
    },
    "cohere": {
        "LayerNorm": (
            "not fused: it computes something else than x * rsqrt(mean(x^2) + eps) * weight, or * (1 + weight)"
        ),
        "Attention": "not fused: its apply_rotary_pos_emb turns something else than the two halves of a head",
        "MLP": SILU,
    },
    "gpt_oss": {
        "RMSNorm": "rms_norm (eps 1e-05, weight, cast as gemma)",
        "Attention": ROPE,
        "MLP": "not fused: it has 0 Linear modules, not three for gate, up and down",
        "Experts": "not fused: its experts compute something else than silu of one half times the other",
    },
    "deepseek_v3": {
        "RMSNorm": LLAMA,
        "Attention": (
            "not fused: its forward chooses between apply_rotary_pos_emb and apply_rotary_pos_emb_interleave"
        ),
        "MLP": SILU,
        "Experts": EXPERTS,
    },
    "qwen3_moe": {"RMSNorm": LLAMA, "Attention": ROPE, "Experts": EXPERTS},
    "qwen3_next": LIKE_QWEN | {"Experts": EXPERTS, "GatedDeltaNet": GATED},
    "qwen3_5": LIKE_QWEN,
    "qwen3_5_moe": LIKE_QWEN | {"Experts": EXPERTS},
    "olmo_hybrid": {
        "RMSNorm": f"{NORM}weight, cast as gemma)",
        "RMSNormGated": GATED,
        "Attention": ROPE,
        "MLP": SILU,
    },
}
"""What is recognised in each family, by the end of the name of a class."""
ALL_EXPERTS = {
    "gpt_oss": {"num_experts_per_tok": 4},
    "deepseek_v3": {"num_experts_per_tok": 4, "topk_group": 2},
    "qwen3_moe": {"num_experts_per_tok": 8},
}
"""Every token goes everywhere, so rounding cannot send it elsewhere."""


def needs_kernels(test):
    return pytest.mark.gpu(pytest.mark.skipif(not READY, reason="needs triton")(test))


def make_model(family: str, seed: int = 0, device: str = "cpu", **overrides: object) -> PreTrainedModel:
    """A model of which no weight is a neutral one."""
    model = build_model(make_config(family, **overrides), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.1 * torch.randn(param.shape, generator=generator))
    return model.to(device)


def torch_kernels(calls: list[str]) -> Kernels:
    """What the kernels compute, by other formulas than those of the models; each call is put on record."""

    def rms_norm(x: Tensor, weight_H: Tensor, eps: float, offset: float, casting: str) -> Tensor:
        calls.append("rms_norm")
        return F.rms_norm(x, weight_H.shape, weight_H + offset, eps)

    def gated(act, gate: Tensor, up: Tensor) -> Tensor:
        calls.append("swiglu")
        return torch.einsum("...i,...i->...i", act(gate), up)

    def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, width: int) -> tuple[Tensor, Tensor]:
        calls.append("rope")
        turn = torch.complex(cos[:, None, :, : width // 2], sin[:, None, :, : width // 2])

        def turned(x: Tensor) -> Tensor:
            pairs = torch.complex(x[..., : width // 2], x[..., width // 2 : width]) * turn
            return torch.cat([pairs.real, pairs.imag, x[..., width:]], dim=-1)

        return turned(q), turned(k)

    def halves(both: Tensor) -> Tensor:
        return gated(F.silu, *both.chunk(2, dim=-1))

    gelu = partial(F.gelu, approximate="tanh")
    return Kernels(rms_norm, partial(gated, F.silu), partial(gated, gelu), rope, halves)


def run(model: PreTrainedModel, device: str = "cpu") -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of packed rows, both in fp32."""
    ids_BS, positions_BS, _ = (x.to(device) for x in make_rows())
    logits = model(input_ids=ids_BS, position_ids=positions_BS, use_cache=False).logits.float()
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(device)
    (logits * weight).sum().backward()
    return logits.detach(), {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}


def equal(got: tuple[Tensor, dict[str, Tensor]], want: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert (got[0] - want[0]).abs().max() <= 1e-5 * want[0].abs().max()
    assert got[1].keys() == want[1].keys()
    for name, grad in want[1].items():
        assert (got[1][name] - grad).abs().max() <= 1e-5 * max(1e-3, grad.abs().max()), name


def recompute(model: PreTrainedModel, keep_products: bool) -> PreTrainedModel:
    """The same model, which runs each block again in the backward pass, and may keep what its projections gave."""
    products = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}

    def policy(ctx, op, *args, **kwargs) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op in products else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    selective = {"context_fn": contexts} if keep_products else {}
    for block in model.model.layers:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, **selective)
    return model


@pytest.mark.parametrize("family", [*FAMILIES, *LINEAR_FAMILIES])
def test_what_is_recognised_in_each_family(family: str) -> None:
    found = describe_kernels(build_model(make_config(family), device="meta"), device_type="cuda")
    found.pop("triton", None)
    assert all(any(kind.endswith(end) for kind in found) for end in FOUND[family])
    for kind, words in found.items():
        end = max((end for end in FOUND[family] if kind.endswith(end)), key=len)
        assert words == FOUND[family][end], kind


class ShiftedNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states - 0.01 * hidden_states.mean(-1, keepdim=True))


class OtherEpsNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.float()
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 3e-6)).to(hidden_states.dtype)


class NarrowNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        mean = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(mean + self.variance_epsilon))


class ClampedMLP(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=7)) * self.up_proj(x))


class CrossedMLP(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (ShiftedNorm, "computes something else"),
        (OtherEpsNorm, "computes something else"),
        (NarrowNorm, "rounds elsewhere"),
        (ClampedMLP, "computes something else"),
    ],
)
def test_what_computes_something_else_is_not_recognised(kind: type[nn.Module], why: str) -> None:
    model = make_model("llama")
    model.model.layers[0].other = kind(model.config) if issubclass(kind, LlamaMLP) else kind(32)
    assert describe_kernels(model, device_type="cuda")[kind.__name__].startswith(f"not fused: it {why}")


@pytest.mark.parametrize("act", ["gelu", "relu", "quick_gelu"])
def test_an_activation_that_no_kernel_has_is_not_recognised(act: str) -> None:
    assert fitting_kernels(make_model("llama", hidden_act=act)) == ("rms_norm", "rope")


def test_gate_and_up_are_told_apart_by_what_they_do() -> None:
    mlp = CrossedMLP(make_config("llama"))
    model = make_model("llama")
    model.model.layers[0].mlp = mlp
    plain = copy.deepcopy(model)
    equal(run(apply_kernels(model, torch_kernels([]), ("swiglu",))), run(plain))


def test_a_forward_that_changes_its_tables_is_not_recognised() -> None:
    class Changed(LlamaAttention):
        def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
            cos, sin = position_embeddings
            cos = cos[..., : self.head_dim]
            return apply_rotary_pos_emb(hidden_states, hidden_states, cos, sin)

    model = make_model("llama")
    model.model.layers[0].self_attn.__class__ = Changed
    words = describe_kernels(model, device_type="cuda")
    assert words["Changed"] == "not fused: its forward may change the position tables before it uses them"
    assert words["LlamaAttention"] == ROPE


def test_a_model_whose_tables_do_not_repeat_keeps_its_rope() -> None:
    model = make_model("llama")
    rotary = type(model.model.rotary_emb)

    class Interleaved(rotary):
        def forward(self, x, position_ids):
            return tuple(t[..., : t.shape[-1] // 2].repeat_interleave(2, -1) for t in super().forward(x, position_ids))

    model.model.rotary_emb.__class__ = Interleaved
    words = describe_kernels(model, device_type="cuda")["LlamaAttention"]
    assert words == "not fused: the second half of its position tables does not repeat the first"


@pytest.mark.parametrize("family", [*FAMILIES, *LINEAR_FAMILIES])
def test_a_fused_model_computes_what_the_plain_one_does(family: str) -> None:
    model, calls = make_model(family), []
    plain = use_attention(copy.deepcopy(model), "eager")
    names = fitting_kernels(model)
    model = apply_kernels(use_attention(model, "eager"), torch_kernels(calls), names)
    equal(run(model), run(plain))
    assert set(calls) == set(names)


def test_attention_may_be_chosen_after_the_kernels() -> None:
    model = make_model("qwen3")
    plain = use_attention(copy.deepcopy(model), "eager")
    equal(run(use_attention(apply_kernels(model, torch_kernels([])), "sdpa")), run(plain))


def test_two_models_do_not_disturb_one_another() -> None:
    model, other, calls = make_model("qwen3"), make_model("qwen3"), []
    forward = type(model.model.layers[0].self_attn).forward
    rotate = forward.__globals__["apply_rotary_pos_emb"]
    apply_kernels(model, torch_kernels(calls))
    run(other)
    assert calls == []
    assert forward.__globals__["apply_rotary_pos_emb"] is rotate
    apply_kernels(other, torch_kernels([]), ("rope",))
    run(model)
    assert {name: calls.count(name) for name in NAMES} == {"rms_norm": 9, "swiglu": 2, "rope": 2, "patches": 0}


def test_only_the_kernels_named_are_used_and_none_twice() -> None:
    model, calls = make_model("llama"), []
    apply_kernels(model, torch_kernels(calls), ("swiglu",))
    apply_kernels(model, torch_kernels(calls), ("swiglu",))
    run(model)
    assert calls == ["swiglu"] * 2
    assert describe_kernels(model, device_type="cuda")["LlamaMLP"] == "swiglu, in use"


def test_a_gate_that_the_models_own_loop_does_not_call_is_told() -> None:
    for compute, use in {"grouped": "in use", "eager": "in place, but the model's own loop"}.items():
        model, calls = make_model("qwen3_moe"), []
        model = use_experts(apply_kernels(model, torch_kernels(calls), ("swiglu",)), compute)
        run(model)
        assert len(calls) == {"grouped": 2, "eager": 0}[compute]
        assert describe_kernels(model, device_type="cuda")["Qwen3MoeExperts"].startswith(f"swiglu, {use}")


def test_projections_are_called_as_modules() -> None:
    model, seen = make_model("llama"), []
    apply_kernels(model, torch_kernels([]))
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_hook(lambda module, args, out, name=name: seen.append(name))
    run(model)
    assert len(seen) == len(set(seen)) == 14


@pytest.mark.parametrize("keep_products", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_fused_blocks_may_be_computed_again(family: str, keep_products: bool) -> None:
    model = make_model(family)
    plain = copy.deepcopy(model)
    equal(run(recompute(apply_kernels(model, make_triton()), keep_products)), run(plain))


@pytest.mark.skipif(not READY, reason="needs triton")
def test_in_tritons_interpreter_blocks_of_kernels_may_be_computed_again(tmp_path: Path) -> None:
    cases = [{"family": f, "keep_products": keep} for f, keep in (("qwen3", False), ("gemma3", True))]
    for case, found in zip(cases, interpret("model", cases, tmp_path), strict=True):
        equal((found["logits"], found["grads"]), run(make_model(case["family"])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_wider_than_their_input_make_the_output_wider(dtype: torch.dtype) -> None:
    model = make_model("llama")
    norm = model.model.norm
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    want = norm(x)
    got = apply_kernels(model, torch_kernels([]), ("rms_norm",)).model.norm(x)
    assert got.dtype == want.dtype == torch.float32
    assert (got - want).abs().max() <= 1e-2


@pytest.mark.parametrize("shape", [(2, 1, 8), (2, 9, 8), (3, 6, 8), (6, 8)])
def test_tables_that_do_not_match_the_tokens_are_refused(shape: tuple[int, ...]) -> None:
    model = apply_kernels(make_model("llama"), torch_kernels([]), ("rope",))
    x, tables = torch.randn(2, 6, 32), torch.ones(shape)
    with pytest.raises(ValueError, match=r"got q, k, cos and sin of .* Leave rope out of the names"):
        model.model.layers[0].self_attn(x, position_embeddings=(tables, tables), attention_mask=None)


def test_what_has_a_forward_of_its_own_keeps_it() -> None:
    model, calls = make_model("llama"), []
    for layer in model.model.layers:
        layer.mlp.forward = layer.mlp.forward
    words = describe_kernels(model, device_type="cuda")["LlamaMLP"]
    assert words == "not fused: it has a forward of its own already"
    run(apply_kernels(model, torch_kernels(calls), fitting_kernels(model)))
    assert set(calls) == {"rms_norm", "rope"}


def test_auto_replaces_nothing_on_the_cpu_and_says_so() -> None:
    model = use_kernels(make_model("llama"), device_type="cpu")
    assert not any("forward" in vars(module) for module in model.modules())
    assert "fused kernels run on CUDA, not on cpu." in describe_kernels(model, device_type="cpu")["triton"]


@pytest.mark.skipif(READY, reason="triton is installed")
def test_without_triton_auto_replaces_nothing_and_says_what_brings_it() -> None:
    model = use_kernels(make_model("llama"), device_type="cuda")
    assert not any("forward" in vars(module) for module in model.modules())
    why = "fused kernels need Triton, which is not installed: it comes with torch for CUDA on Linux."
    assert describe_kernels(model, device_type="cuda")["triton"] == why
    with pytest.raises(ValueError, match="rope: fused kernels need Triton, which is not installed"):
        use_kernels(model, ("rope",), device_type="cuda")


@pytest.mark.skipif(not READY, reason="needs triton")
def test_with_triton_auto_replaces_all_that_fits_on_cuda() -> None:
    model = use_kernels(make_model("llama"), device_type="cuda")
    uses = {"LlamaRMSNorm": "rms_norm, in use", "LlamaMLP": "swiglu, in use", "LlamaAttention": "rope, in use"}
    assert describe_kernels(model, device_type="cuda") == uses


def test_kernels_asked_for_by_name_are_refused_where_they_cannot_be_had() -> None:
    model = make_model("cohere")
    with pytest.raises(ValueError, match=r"rope: fused kernels run on CUDA, not on cpu.*names='auto'"):
        use_kernels(model, ("rope",), device_type="cpu")
    with pytest.raises(ValueError, match=r"there is no kernel 'rmsnorm'; there are .*; did you mean rms_norm"):
        use_kernels(model, ("rmsnorm",), device_type="cpu")
    with pytest.raises(ValueError, match=r"has no place for rope. .*turns something else.* Leave it out"):
        apply_kernels(model, torch_kernels([]), ("rope", "swiglu"))
    assert use_kernels(model, (), device_type="cpu") is model


def in_bf16(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with parameters in bf16; frequencies of positions stay as they are."""
    for param in model.parameters():
        param.data = param.data.bfloat16()
    return model


def close(fused: Tensor, eager: Tensor, exact: Tensor, slack: float) -> bool:
    """Whether fused is about as far from exact as eager is."""
    return bool((fused - exact).norm() <= 1.5 * (eager - exact).norm() + slack * exact.norm())


@needs_kernels
@pytest.mark.parametrize("keep_products", [None, False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_are_as_exact_as_eager_in_bf16(family: str, keep_products: bool | None) -> None:
    model = make_model(family, device="cuda", **ALL_EXPERTS.get(family, {}))
    exact, eager = (use_attention(copy.deepcopy(model), "eager") for _ in range(2))
    fused = use_kernels(use_attention(model, "eager"), fitting_kernels(model), device_type="cuda")
    if keep_products is not None:
        fused = recompute(fused, keep_products)
    want, plain, got = run(exact, "cuda"), run(in_bf16(eager), "cuda"), run(in_bf16(fused), "cuda")
    assert close(got[0], plain[0], want[0], 1e-3)
    assert got[1].keys() == want[1].keys()
    for name, grad in want[1].items():
        assert close(got[1][name], plain[1][name], grad, 1e-2), name
    whole = [torch.cat([grads[name].flatten() for name in want[1]]) for grads in (got[1], plain[1], want[1])]
    assert close(*whole, 1e-3)


@needs_kernels
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_are_exact_in_fp32(family: str) -> None:
    model = make_model(family, device="cuda")
    plain = use_attention(copy.deepcopy(model), "eager")
    got = run(use_kernels(use_attention(model, "eager"), device_type="cuda"), "cuda")
    want = run(plain, "cuda")
    assert (got[0] - want[0]).abs().max() <= 1e-4 * want[0].abs().max()
    for name, grad in want[1].items():
        assert (got[1][name] - grad).abs().max() <= 1e-4 * max(1e-2, grad.abs().max()), name
