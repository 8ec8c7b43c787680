"""Laws of preference pairs: one prompt, two answers, and only these are learnt."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from omni_data import Pair, byte_tokenizer, pair_of, render_pair

USER, GOOD, BAD = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "assistant", "content": "No."},
)
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token="<|endoftext|>")
TOKENIZER.chat_template = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "No."},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD], "score": 1},
        {"prompt": [USER], "chosen": "Hello!", "rejected": [BAD], "tools": None},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
)
def test_every_form_gives_the_same_pair(record):
    assert pair_of(record) == Pair((USER,), (GOOD,), (BAD,))


TEXT = st.text(max_size=8)


@given(st.lists(st.tuples(TEXT, TEXT), max_size=3), TEXT, TEXT, TEXT)
def test_the_prompt_is_shared_and_the_answers_alone_are_learnt(before, asked, better, worse):
    talk = [m for q, a in before for m in ({**USER, "content": q}, {**GOOD, "content": a})]
    pair = Pair((*talk, {**USER, "content": asked}), ({**GOOD, "content": better},), ({**BAD, "content": worse},))
    samples = render_pair(pair, TOKENIZER)
    prompt = TOKENIZER.apply_chat_template([*pair.prompt], add_generation_prompt=True, return_dict=False)
    for sample, answer in zip(samples, (better, worse), strict=True):
        assert sample.tokens_N[: len(prompt)].tolist() == prompt
        assert sample.tokens_N[sample.learn_N].tolist() == [*answer.encode(), 256]
        assert np.flatnonzero(sample.learn_N)[0] == len(prompt)


def test_an_answer_of_several_messages_is_learnt_where_the_assistant_says_it():
    chosen = ({**GOOD, "content": "f(1)"}, {"role": "tool", "content": "2"}, GOOD)
    sample, _ = render_pair(Pair((USER, BAD, USER), chosen, (BAD,)), TOKENIZER)
    assert TOKENIZER.decode(sample.tokens_N[sample.learn_N]) == "f(1)<|endoftext|>Hello!<|endoftext|>"


def test_a_prompt_that_depends_on_the_answer_is_refused():
    marked = (
        "{{ messages[-1].content | length }}{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}"
    )
    marked += "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}"
    with pytest.raises(ValueError) as caught:
        render_pair(Pair((USER,), (GOOD,), (BAD,)), TOKENIZER, template_kwargs={"chat_template": marked})
    assert str(caught.value) == (
        "the template writes the prompt differently before the two answers: of its 3 tokens, the one at 0 is '6' "
        "before the chosen answer, and '3' before the rejected."
    )


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (3, "a record must be an object, got 3 (int)."),
        (
            {"prompt": "a", "chosen": "b"},
            "no preference pair: fields are 'prompt', 'chosen'; missing are 'rejected'.",
        ),
        ({}, "no preference pair: fields are none; missing are 'chosen', 'rejected'."),
        (
            {"prompt": "a", "chosen": "b", "reject": "c"},
            "unknown field 'reject'; did you mean 'rejected'? Known are prompt, chosen, rejected, tools.",
        ),
        (
            {"chosen": "a", "rejected": "b"},
            "no preference pair: answers that are strings need a field 'prompt'; there is none.",
        ),
        (
            {"chosen": [GOOD], "rejected": [BAD]},
            "no preference pair: chosen and rejected have no first message in common, so no prompt.",
        ),
        (
            {"chosen": [USER, GOOD], "rejected": [USER]},
            "no preference pair: after the prompt, 'rejected' has no message of the assistant.",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": [USER]},
            "no preference pair: after the prompt, 'rejected' has no message of the assistant.",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "no preference pair: chosen and rejected are the same."),
        (
            {"prompt": "a", "chosen": 1, "rejected": "b"},
            "field 'chosen' holds 1 (int): it must be a string, or a list of messages.",
        ),
        (
            {"prompt": "a", "chosen": [{"role": "asistant", "content": ""}], "rejected": "b"},
            "chosen[0]: unknown role 'asistant'; known are system, developer, user, assistant, tool, human, gpt, "
            "chatgpt, model, bot, function_call, observation, function, tool_response. Did you mean 'assistant'?",
        ),
    ],
)
def test_a_record_that_is_no_pair_says_why(record, message):
    with pytest.raises(ValueError) as caught:
        pair_of(record)
    assert str(caught.value) == message
