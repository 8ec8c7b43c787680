"""Laws of feed-forward modules that treat each token alone: what is not proven is none."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shapes import make_config
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from omni_models import build_model, describe, read_config
from omni_models.token_wise import describe_mlps, token_wise_problem

GPT2 = {"vocab_size": 80, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}


def make_gpt2(dropout: float) -> PreTrainedModel:
    return build_model(AutoConfig.for_model("gpt2", **GPT2, resid_pdrop=dropout), device="meta")


@pytest.mark.parametrize(
    ("family", "places"),
    [
        ("llama", ("mlp", "mlp")),
        ("phi3", ("mlp", "mlp")),
        ("gemma2", ("mlp", "mlp")),
        ("deepseek_v3", ("mlp", "mlp.shared_experts")),
        ("qwen3_next", ("mlp.shared_expert", "mlp.shared_expert")),
        ("qwen3_moe", ()),
        ("gpt_oss", ()),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_feed_forwards_of_a_model_are_found_and_experts_that_are_chosen_are_none(
    family: str, places: tuple[str, ...]
) -> None:
    facts = describe(build_model(make_config(family), device="meta"))
    assert facts.mlps == tuple(f"model.layers.{i}.{place}" for i, place in enumerate(places))


def test_one_of_two_layers_is_found_unless_it_drops() -> None:
    assert describe(make_gpt2(0.0)).mlps == ("transformer.h.0.mlp", "transformer.h.1.mlp")
    for dropout, training in ((0.1, True), (1e-9, True), (0.1, False)):
        model = make_gpt2(dropout).train(training)
        assert describe(model).mlps == ()
        words = describe_mlps(model, ("transformer.h.0",))
        assert words == {"GPT2MLP": "not token by token: it draws random numbers, as dropout does"}


class Feed(nn.Module):
    def __init__(self, kind: str = "", width: int = 32, wide: int = 48) -> None:
        super().__init__()
        self.kind = kind
        first = 2 * wide if kind == "halves" else wide
        self.first, self.second = nn.Linear(width, first), nn.Linear(wide, 31 if kind == "narrows" else width)
        if kind == "holds more":
            self.more = nn.ModuleList([nn.Linear(32, 32)])

    def forward(self, x: Tensor) -> Any:
        h = F.gelu(self.first(x))
        if self.kind == "halves":
            h = h[..., : h.shape[-1] // 2] * h[..., h.shape[-1] // 2 :]
        if self.kind == "smooths":
            h = h + h.roll(1, dims=-2)
        if self.kind == "counts":
            h = h / x.shape[1]
        if self.kind == "normalizes":
            h = h - h.mean()
        y = self.second(h)
        return (y, h) if self.kind == "tells more" else y


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("", ""),
        ("smooths", "what it gives for a token depends on others"),
        ("counts", "what it gives for a token depends on others"),
        ("normalizes", "what it gives for a token depends on others"),
        ("narrows", "it fails on a plain input (RuntimeError)"),
        ("tells more", "it gives something else than a tensor like the one it takes"),
        ("holds more", "it has matrices beside its own projections, as experts are"),
    ],
)
@torch.no_grad()
def test_what_is_not_proven_is_told(kind: str, problem: str) -> None:
    assert token_wise_problem(Feed(kind)) == problem


@pytest.mark.parametrize(("width", "wide"), [(32, 32), (32, 64), (32, 37), (32, 16), (22, 44), (28, 42)])
@pytest.mark.parametrize("kind", ["", "halves"])
@torch.no_grad()
def test_any_ratio_of_widths_will_do(kind: str, width: int, wide: int) -> None:
    assert not token_wise_problem(Feed(kind, width, wide))


@torch.no_grad()
def test_a_proof_draws_nothing_reads_no_weights_and_is_small() -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        large = Feed()
        large.first, large.second = nn.Linear(1 << 14, 1 << 20), Conv1D(1 << 14, 1 << 20)
        odd = Feed(wide=(1 << 28) + 1)
    assert not token_wise_problem(large.eval())
    assert "no common divisor" in token_wise_problem(odd)
    assert torch.equal(before, torch.get_rng_state())
    assert not large.training
    assert len(describe(build_model(read_config("llama-3.1-405b"), device="meta")).mlps) == 126
