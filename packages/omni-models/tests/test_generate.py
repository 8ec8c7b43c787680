"""Laws of generation: a row goes on as the model that reads it again would say, text and outputs alike."""

import composing
import pytest
import torch
from composing import BEGIN, IMAGE, PICTURE, document
from torch import Tensor

from omni_models import Generated, OmniModel, generate, keys_of, use_attention
from omni_models.draws import uniform_of

SIZE = 12


def eager_text(model: OmniModel) -> OmniModel:
    """The same, in which the likeliest token after 5 is that which begins a picture."""
    with torch.no_grad():
        head = model.foundation.get_output_embeddings().weight
        head[BEGIN] *= 8
    return model


@pytest.fixture(scope="module")
def model() -> OmniModel:
    return eager_text(composing.make_model("qwen3"))


def prompt() -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """A picture that is seen, one that was drawn, and a few words."""
    doc = document(2, "image", 1, "picture", 3, seed=4)
    arrays = {name: torch.from_numpy(array) for name, array in doc.arrays.items()}
    return (
        torch.from_numpy(doc.tokens_N).long(),
        {"pixel_values": arrays["pixel_values"]},
        {"picture": arrays["picture_targets"]},
    )


def go_on(model: OmniModel, most: int = SIZE, **how) -> Generated:
    tokens_N, media, outputs = prompt()
    return generate(model, tokens_N, most, media=media, outputs=outputs, **how)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_with_a_cache_and_without_the_same_is_made(model: OmniModel, temperature: float) -> None:
    kept, anew = (go_on(model, temperature=temperature, seed=3, cache=cache) for cache in (True, False))
    assert kept.tokens_N.tolist() == anew.tokens_N.tolist() and len(kept.tokens_N) >= len(prompt()[0]) + SIZE
    assert all(torch.equal(kept.outputs[name], anew.outputs[name]) for name in kept.outputs)


def test_each_token_is_the_likeliest_of_the_row_before_it(model: OmniModel) -> None:
    made, (tokens_N, media, _) = go_on(model), prompt()
    count = len(tokens_N)
    row, codes = made.tokens_N, made.outputs["picture"]
    out = model(row[None], torch.arange(len(row))[None], decoder_inputs=dict(made.outputs), **media)
    assert PICTURE in row[count:] and BEGIN in row[count:]
    outputs = (row == PICTURE).cumsum(0) - 1
    for place in range(count, len(row)):
        before = out.hidden_states[:, place - 1]
        if row[place] == PICTURE:
            assert codes[outputs[place]] == model.decoders["picture"].head.out(before).argmax()
        else:
            logits = out.logits[0, place - 1].clone()
            logits[IMAGE:BEGIN] = -torch.inf
            assert row[place] == logits.argmax()


def test_outputs_come_after_the_token_that_begins_them_and_are_brought_to_their_end(model: OmniModel) -> None:
    for most in range(1, 8):
        begun = torch.tensor([7, 3, BEGIN])
        made = generate(model, begun, most)
        row = made.tokens_N.tolist()
        assert row[3:7] == [PICTURE] * 4 and len(row) >= 3 + most
        assert len(made.outputs["picture"]) == row.count(PICTURE) == 4 * row[:-1].count(BEGIN)


def test_what_is_drawn_depends_on_the_seed_and_nothing_else(model: OmniModel) -> None:
    torch.manual_seed(0)
    first = go_on(model, temperature=2.0, seed=1)
    torch.manual_seed(1)
    assert first.tokens_N.tolist() == go_on(model, temperature=2.0, seed=1).tokens_N.tolist()
    assert first.tokens_N.tolist() != go_on(model, temperature=2.0, seed=2).tokens_N.tolist()
    key = torch.from_numpy(keys_of(1, 0, torch.zeros(1).long().numpy(), torch.tensor([4]).numpy()))
    assert 0 < uniform_of(key, 1).item() < 1


def test_a_row_ends_with_its_last_token(model: OmniModel) -> None:
    row = go_on(model).tokens_N.tolist()
    count = len(prompt()[0])
    text = next(token for token in row[count:] if token != PICTURE)
    ended = go_on(model, eos_id=text).tokens_N.tolist()
    assert ended == row[: row.index(text, count) + 1]


def test_any_attention_goes_on_without_a_cache() -> None:
    model = use_attention(eager_text(composing.make_model("qwen3")), "eager")
    plain = eager_text(composing.make_model("qwen3"))
    assert go_on(model, cache=False).tokens_N.tolist() == go_on(plain).tokens_N.tolist()


def test_an_empty_prompt_is_refused(model: OmniModel) -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        generate(model, torch.zeros(0, dtype=torch.int64), 1)
