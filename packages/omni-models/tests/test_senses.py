"""Laws of the parts of a model: each parameter is of one, and what is frozen is that part."""

import pytest
from senses import SEEING, make_model

from omni_models import build_model, describe, find_parts, freeze_parts, part_problems, read_config
from omni_models.senses import part_of


@pytest.mark.parametrize("family", [*SEEING, "qwen2_audio"])
def test_towers_and_projectors_are_what_is_beside_the_decoder(family):
    model = make_model(family)
    parts = find_parts(model)
    assert all(parts.values()), "each family has all three"
    counts = dict.fromkeys(parts, 0)
    for name, param in model.named_parameters():
        counts[part_of(name, parts["tower"], parts["projector"])] += param.numel()
    assert all(counts.values())
    assert counts["tower"] + counts["projector"] == describe(model).tower_params
    assert counts["language"] == describe(model).num_params - describe(model).tower_params


def test_what_is_frozen_is_not_trained_and_nothing_else():
    model = freeze_parts(make_model("qwen3_vl"), ("tower", "language"))
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "merger" in name}


def test_parts_that_are_not_there_and_all_of_them_are_refused():
    text = build_model(read_config("tiny"), device="meta")
    (problem,) = part_problems(text, ("tower",))
    assert problem == "Qwen3ForCausalLM has no tower that could be frozen: its parts are language."
    with pytest.raises(ValueError, match="nothing is left to train where language are frozen"):
        freeze_parts(text, ("language",))


def test_decoders_of_composed_models_are_no_towers():
    parts = find_parts(build_model(read_config("tiny-omni"), device="meta"))
    assert parts["tower"] == ("encoders",) and parts["projector"] == ("encoders.image.projector",)
    assert parts["language"] == ("foundation.model", "foundation.lm_head", "decoders.picture")
