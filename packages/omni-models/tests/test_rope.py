"""Laws of position encodings that depend on length: that of its own document only, and never of what came before."""

import copy
from typing import Any

import pytest
import torch
from shapes import make_config
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from omni_models import build_model, use_attention
from omni_models.rope import exact_rope, length_dependent_rotaries

LENGTHS = [[5, 16, 17, 30, 23, 1], [17, 1, 30, 5, 23, 16]]
"""Documents of two rows of 92 tokens: below, at and above the 16 tokens of training, in two orders."""
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e2, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e2,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [4.0, 3.0, 5.0, 2.0],
}
CASES: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama", "max_position_embeddings": 16, "rope_parameters": DYNAMIC},
    "phi3": {
        "family": "phi3",
        "max_position_embeddings": 64,
        "original_max_position_embeddings": 16,
        "rope_parameters": LONGROPE,
    },
    "gemma3": {
        "family": "gemma3",
        "max_position_embeddings": 16,
        "rope_parameters": {
            "full_attention": DYNAMIC,
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
        },
    },
    "qwen3_5": {
        "family": "qwen3_5",
        "max_position_embeddings": 16,
        "rope_parameters": {**DYNAMIC, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]},
    },
}


def make_model(case: str) -> PreTrainedModel:
    """A model with weights so large that positions matter."""
    fields = dict(CASES[case])
    model = build_model(make_config(fields.pop("family"), **fields))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.2 * torch.randn(param.shape, generator=draw))
    return model


def make_rows() -> tuple[Tensor, Tensor, list[Tensor]]:
    ids_BS = torch.randint(0, 80, (2, 92), generator=torch.Generator().manual_seed(0))
    positions_BS = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])
    apart = [piece[None] for row, sizes in zip(ids_BS, LENGTHS, strict=True) for piece in row.split(sizes)]
    return ids_BS, positions_BS, apart


@pytest.mark.parametrize("case", CASES)
def test_packed_rows_equal_separate_documents_of_fresh_plain_models(case: str) -> None:
    ours = make_model(case)
    config = copy.deepcopy(ours.config)
    ids_BS, positions_BS, apart = make_rows()
    grads = {name: torch.zeros_like(param) for name, param in ours.named_parameters()}
    # Of a draw whose gradients do not nearly cancel: for A_log they may, and then rounding is most of what is left.
    weight = torch.randn(2 * 92, 80, generator=torch.Generator().manual_seed(2))
    expected = []
    for ids, part in zip(apart, weight.split([n for row in LENGTHS for n in row]), strict=True):
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        fresh.load_state_dict(ours.state_dict())
        logits = fresh(input_ids=ids, use_cache=False).logits[0]
        (logits * part).sum().backward()
        expected.append(logits.detach())
        for name, param in fresh.named_parameters():
            grads[name] += param.grad
    expected = torch.cat(expected)

    ours = use_attention(ours, "eager")
    for _ in range(2):  # The second time shows what a module remembers of the first.
        ours.zero_grad()
        got = ours(input_ids=ids_BS, position_ids=positions_BS, use_cache=False).logits.flatten(0, 1)
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
        (got * weight).sum().backward()
        for name, param in ours.named_parameters():
            assert (param.grad - grads[name]).abs().max() <= 1e-5 * grads[name].abs().max(), name


@pytest.mark.parametrize("case", CASES)
def test_plain_transformers_lets_the_longest_document_change_the_others(case: str) -> None:
    """Or the test above would prove nothing."""
    model = make_model(case)
    rotary = model.get_submodule(length_dependent_rotaries(model)[0])
    kind = {"layer_type": "full_attention"} if case == "gemma3" else {}
    x = torch.zeros(1, 1)
    positions_BS = make_rows()[1].expand(3, 2, 92) if case == "qwen3_5" else make_rows()[1]
    plain = rotary(x, positions_BS, **kind)[0]
    exact = exact_rope(model).get_submodule(length_dependent_rotaries(model)[0])(x, positions_BS, **kind)[0]
    assert (plain - exact)[:, :5].abs().max() > 1e-2


def test_the_longest_of_earlier_rows_does_not_change_shorter_ones() -> None:
    rotary = make_model("llama").model.rotary_emb
    at_the_limit, beyond = torch.arange(16)[None], torch.arange(30)[None]
    x = torch.zeros(1, 1)
    fresh = rotary(x, at_the_limit)[0]
    rotary(x, beyond)
    assert not torch.equal(rotary(x, at_the_limit)[0], fresh), "transformers forgets by itself now"
    model = exact_rope(make_model("llama"))
    model.model.rotary_emb(x, beyond)
    assert torch.equal(model.model.rotary_emb(x, at_the_limit)[0], fresh)


@pytest.mark.parametrize(
    ("case", "kind", "calls"),
    [
        ("llama", {}, 5),
        ("phi3", {}, 3),
        ("gemma3", {"layer_type": "full_attention"}, 5),
        ("gemma3", {"layer_type": "sliding_attention"}, 1),
    ],
)
def test_documents_that_are_encoded_alike_share_a_call(
    case: str, kind: dict[str, str], calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call to forget, one for short documents, then one for each longer length, or one for all long ones."""
    model = make_model(case)
    rotary = type(model.model.rotary_emb)
    forward, seen = rotary.forward, []
    monkeypatch.setattr(rotary, "forward", lambda *args, **kwargs: seen.append(1) or forward(*args, **kwargs))
    exact_rope(model).model.rotary_emb(torch.zeros(1, 1), make_rows()[1], **kind)
    assert len(seen) == calls


def test_a_row_that_begins_inside_a_document_takes_its_length_from_the_positions() -> None:
    rotary, exact = make_model("llama").model.rotary_emb, exact_rope(make_model("llama")).model.rotary_emb
    x, positions = torch.zeros(1, 1), torch.tensor([[20, 21, 22, 0, 1, 2]])
    assert torch.equal(exact(x, positions)[0][:, :3], rotary(x, positions[:, :3])[0])


def test_planes_of_positions_begin_a_document_where_all_are_zero() -> None:
    fresh, fresher = (make_model("qwen3_5").model.rotary_emb for _ in range(2))
    exact = exact_rope(make_model("qwen3_5")).model.rotary_emb
    text_PBS = torch.arange(20).expand(3, 1, 20)
    image_PBS = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]])[:, None]
    image_PBS = torch.cat([image_PBS, 2 + text_PBS], dim=-1)  # Four patches, and text after them.
    x = torch.zeros(1, 1)
    got = exact(x, torch.cat([text_PBS, image_PBS], dim=-1))[0]
    assert torch.equal(got[:, 20:], fresh(x, image_PBS)[0])
    assert torch.equal(got[:, :20], fresher(x, text_PBS)[0])


@pytest.mark.parametrize("case", CASES)
def test_modules_that_depend_on_length_are_named(case: str) -> None:
    assert length_dependent_rotaries(make_model(case)) == ("model.rotary_emb",)
    assert length_dependent_rotaries(build_model(make_config("llama"), device="meta")) == ()


def test_a_copy_of_a_model_encodes_by_its_own_module() -> None:
    model = exact_rope(make_model("llama"))
    copied = copy.deepcopy(model)
    assert copied.model.rotary_emb.forward.__self__ is copied.model.rotary_emb
