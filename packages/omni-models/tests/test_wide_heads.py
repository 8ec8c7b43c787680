"""Laws of heads that are padded by weights: the same values and gradients, and only where that is proven and pays."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_fused_towers import make_tower, run, skip_decorated
from test_kernels import equal, torch_kernels
from torch import Tensor, nn

from omni_models import map_attention, turning, use_attention
from omni_models.fa4 import has_fa4
from omni_models.kernels import apply_kernels, use_kernels
from omni_models.wide_heads import Wider, prove_heads, round_heads, widen

PADDED = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"]


def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pad also where it does not pay: on a CPU, in fp32."""
    monkeypatch.setattr(turning, "widen", partial(widen, suits=lambda *_: True))


def watch(model: Any) -> tuple[Any, set[tuple[str, int]]]:
    """The same model, and by class of attention the dims of the heads that it was called with."""
    seen: set[tuple[str, int]] = set()

    def watched(own: Callable[..., Any]) -> Callable[..., Any]:
        def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, **facts: Any) -> Any:
            kind = type(module.own if isinstance(module, Wider) else module).__name__
            seen.update((kind, x.shape[-1]) for x in (q, k, v))
            return own(module, q, k, v, *args, **facts)

        return attend

    return map_attention(model, watched), seen


@pytest.mark.parametrize("family", PADDED)
@pytest.mark.parametrize("attend", ["eager", "sdpa"])
def test_a_tower_with_padded_heads_computes_what_the_plain_one_does(
    family: str, attend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tower(family)
    skip_decorated(model, family)
    plain = copy.deepcopy(model)
    always(monkeypatch)
    model, seen = watch(use_attention(apply_kernels(model, torch_kernels([])), attend))
    equal(run(model), run(plain))
    assert {dim for kind, dim in seen if "Vision" in kind} == {32}
    assert {name: x.shape for name, x in model.state_dict().items()} == {
        name: x.shape for name, x in plain.state_dict().items()
    }


@pytest.mark.parametrize("family", PADDED)
def test_where_it_does_not_pay_heads_are_as_they_were(family: str) -> None:
    model = make_tower(family)
    skip_decorated(model, family)
    model, seen = watch(use_attention(apply_kernels(model, torch_kernels([])), "sdpa"))
    run(model)
    assert {dim for kind, dim in seen if "Vision" in kind} == {8}


class Attention(nn.Module):
    """An attention of patches that may be made to count its features."""

    def __init__(self, head_dim: int, kind: str) -> None:
        super().__init__()
        self.head_dim, self.kind, self.config = head_dim, kind, Config()
        self.qkv, self.proj = nn.Linear(16, 3 * 2 * head_dim), nn.Linear(2 * head_dim, 16)

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any) -> Tensor:
        assert cu_seqlens.tolist() == [0, 4, 6]
        size = self.head_dim if self.kind == "named" else -1
        q, k, v = self.qkv(hidden_states).reshape(len(hidden_states), 3, 2, size).unbind(1)
        scale = q.shape[-1] if self.kind == "counted" else self.head_dim
        scores = torch.einsum("qnd,knd->nqk", q, k) * scale**-0.5
        return self.proj(torch.einsum("nqk,knd->qnd", scores.softmax(-1), v).flatten(1))


class Config:
    """A configuration that names an attention."""


@pytest.mark.parametrize(
    ("kind", "head_dim", "found"),
    [("plain", 8, 8), ("plain", 80, 80), ("plain", 32, 0), ("named", 8, 0), ("counted", 8, 0)],
)
def test_heads_are_padded_only_where_that_is_proven(kind: str, head_dim: int, found: int) -> None:
    assert prove_heads(Attention(head_dim, kind), Attention.forward) == found


def test_heads_are_proven_on_the_cpu_whatever_the_default_device_is() -> None:
    with torch.device("meta"):
        module = Attention(8, "plain")
        assert prove_heads(module, Attention.forward) == 8
    del module.config
    assert prove_heads(module, Attention.forward) == 0, "it names no attention, so nothing is known of it"


def test_attention_without_one_projection_for_all_three_is_left_alone() -> None:
    model = make_tower("qwen2_5_omni_thinker")
    attentions = [module for module in model.modules() if type(module).__name__ == "Qwen2_5OmniVisionAttention"]
    assert attentions and all(prove_heads(module, type(module).forward) == 0 for module in attentions)


@pytest.mark.gpu
# The compiler of FlashAttention-4 is newer than its kernels, and says so of each.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Argument aux_data:UserWarning")
@pytest.mark.parametrize("family", PADDED)
@pytest.mark.parametrize("attend", ["varlen", "fa4"])
def test_on_a_gpu_heads_are_padded_in_bf16_and_attention_pads_none(family: str, attend: str) -> None:
    if attend == "fa4" and not has_fa4():
        pytest.skip("needs flash-attn-4")
    exact, grads = run(make_tower(family).cuda(), "cuda")
    noisy, noisy_grads = run(use_attention(make_tower(family).cuda().bfloat16(), "eager"), "cuda")
    model = use_kernels(make_tower(family).cuda().bfloat16(), device_type="cuda")
    skip_decorated(model, family)
    model, seen = watch(use_attention(model, attend))
    found, found_grads = run(model, "cuda")
    assert {dim for kind, dim in seen if "Vision" in kind} == {round_heads(8)}
    assert (found - exact).norm() <= 1.5 * (noisy - exact).norm() + 1e-3 * exact.norm()
    for name, grad in grads.items():
        noise = (noisy_grads[name] - grad).norm()
        assert (found_grads[name] - grad).norm() <= 2 * noise + 1e-2 * grad.norm(), name
