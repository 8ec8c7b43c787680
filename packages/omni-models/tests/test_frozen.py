"""Laws of frozen parameters: which they are, and in what dtype they are held."""

import pytest
import torch
from shapes import make_config

from omni_models import build_model, cast_frozen, freeze_params, freeze_problems


def test_what_a_pattern_matches_is_not_trained_and_all_else_is() -> None:
    model = build_model(make_config("llama"))
    assert freeze_params(model, ["embed", r"layers\.0\."]) is model
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if "embed" in name or "layers.0." in name}
    assert frozen and len(frozen) < len([*model.parameters()])


def test_frozen_parameters_are_held_in_the_dtype_of_compute_and_others_stay() -> None:
    model = freeze_params(build_model(make_config("llama")), ["norm"])
    assert cast_frozen(model, torch.bfloat16) is model
    assert all((param.dtype == torch.bfloat16) == ("norm" in name) for name, param in model.named_parameters())


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (["embed_token_"], "freeze embed_token_ is in no name of a parameter. Did you mean embed_tokens?"),
        (["zzz"], "Parts of names are model, embed_tokens, weight, layers"),
        (["("], r"freeze ( is no regular expression"),
        (["model", "head"], "freeze model head leaves nothing to train"),
    ],
)
def test_patterns_that_make_no_sense_are_refused(patterns: list[str], told: str) -> None:
    model = build_model(make_config("llama", tie_word_embeddings=False))
    assert told in freeze_problems(model, patterns)[0]
    with pytest.raises(ValueError):
        freeze_params(model, patterns)
    assert all(param.requires_grad for param in model.parameters())
