"""Laws of chats: the mask is that of transformers, with and without its marks in the template."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from omni_data import byte_tokenizer, conversation_of, encode_chat, read_tokenizer, render_chat

SPECIAL = [
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    *("<|start|>", "<|message|>", "<|channel|>", "<|return|>", "<|observation|>", "[INST]", "[/INST]"),
]
LEARNT_TEXT = ["user assistant system tool hello world: the answer is\n\n 42.\n\n\nUSER: ASSISTANT: name arguments"] * 9


def tokenizer_with(template, special=SPECIAL):
    """A byte-level tokenizer with some merges, also across spaces and newlines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LEARNT_TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    return fast


TOOLS_HEAD = "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
CALLS = (
    "{% for c in m.tool_calls or [] %}{{ '\n<tool_call>\n' + (c.function | tojson) + '\n</tool_call>' }}{% endfor %}"
)
GENERATION = {
    "chatml": TOOLS_HEAD + "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}" + CALLS + "{{ '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama3": "{{ '<|begin_of_text|>' }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content | trim }}" + CALLS + "{{ '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ m.content | trim }}{{ '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "zephyr": "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|assistant|>\n' }}"
    "{% generation %}{{ m.content + eos_token }}{% endgeneration %}{{ '\n' }}{% elif m.role == 'system' %}"
    "{{ '<|system|>\n' + m.content + eos_token + '\n' }}{% else %}{{ '<|user|>\n' + m.content + eos_token + '\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "gemma": "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{% if m.role == 'assistant' %}{{ '<start_of_turn>model\n' }}"
    "{% generation %}{{ m.content | trim + '<end_of_turn>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<start_of_turn>' + m.role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "mistral": "{{ bos_token }}{% set start = 0 %}{% if messages[0].role == 'system' %}{% set start = 1 %}{% endif %}"
    "{% for m in messages[start:] %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ ' ' + m.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ '[INST] ' }}{% if loop.first and start %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "{{ m.content + ' [/INST]' }}{% endif %}{% endfor %}",
    "phi": "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|assistant|>\n' }}"
    "{% generation %}{{ m.content + '<|end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "vicuna": "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ 'ASSISTANT:' }}"
    "{% generation %}{{ ' ' + m.content + '</s>' }}{% endgeneration %}"
    "{% else %}{{ m.role | upper + ': ' + m.content + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
}
"""Templates that mark what the assistant says, in the formats of their names."""


def unmarked(template):
    return re.sub(r"\{% (end)?generation %\}", "", template)


MARKED = {name: tokenizer_with(template) for name, template in GENERATION.items()}
UNMARKED = {name: tokenizer_with(unmarked(template)) for name, template in GENERATION.items()}

TEXT = st.text(max_size=12) | st.lists(
    st.sampled_from(
        ["", " ", "\n", "\n\n", "hello", " world", "é", "👩‍👩‍👧", "日本", "assistant", "<think>", "<|im_end|>", "</s>"]
    ),
    max_size=5,
).map("".join)
CALL = st.fixed_dictionaries({"name": st.just("f"), "arguments": st.dictionaries(st.just("x"), TEXT)}).map(
    lambda function: {"type": "function", "function": function}
)
SAID = st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXT}, optional={"learn": st.booleans()})
CALLED = st.builds(
    lambda content, calls, result, said: [
        {"role": "assistant", "content": content, "tool_calls": calls},
        {"role": "tool", "content": result},
        said,
    ],
    TEXT,
    st.lists(CALL, min_size=1, max_size=2),
    TEXT,
    SAID,
)
EXCHANGE = st.tuples(TEXT.map(lambda text: [{"role": "user", "content": text}]), SAID.map(lambda m: [m]) | CALLED)
EXCHANGES = st.lists(EXCHANGE.map(lambda pair: [*pair[0], *pair[1]]), min_size=1, max_size=4)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def bare(messages):
    return [{key: value for key, value in message.items() if key != "learn"} for message in messages]


def fitted(name, exchanges, system):
    """A chat that this template takes."""
    messages = [message for exchange in exchanges for message in exchange]
    if name not in ("chatml", "llama3"):
        messages = [message for message in messages if message["role"] != "tool" and "tool_calls" not in message]
    head = [{"role": "system", "content": system}] if system is not None and name != "gemma" else []
    return [*head, *messages]


@pytest.mark.parametrize("name", GENERATION)
@given(exchanges=EXCHANGES, system=st.none() | TEXT, tools=st.sampled_from([None, [TOOL]]))
def test_the_mask_is_that_of_transformers_with_and_without_marks_in_the_template(name, exchanges, system, tools):
    messages = bare(fitted(name, exchanges, system))
    theirs = MARKED[name].apply_chat_template(
        messages, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    for tokenizers in (MARKED, UNMARKED):
        sample = render_chat(messages, tokenizers[name], tools=tools)
        assert sample.tokens_N.tolist() == theirs["input_ids"]
        assert sample.learn_N.tolist() == [bool(x) for x in theirs["assistant_masks"]]


COUNT = "{{ messages | length }}"
COUNTED = {name: tokenizer_with(COUNT + template) for name, template in GENERATION.items()}
COUNTED_UNMARKED = {name: tokenizer_with(COUNT + unmarked(template)) for name, template in GENERATION.items()}


@pytest.mark.parametrize("name", GENERATION)
@given(exchanges=EXCHANGES, system=st.none() | TEXT)
def test_the_mask_is_the_same_where_no_beginning_of_a_chat_is_rendered_alike(name, exchanges, system):
    messages = bare(fitted(name, exchanges, system))
    theirs, ours = render_chat(messages, COUNTED[name]), render_chat(messages, COUNTED_UNMARKED[name])
    assert ours.tokens_N.tolist() == theirs.tokens_N.tolist()
    assert ours.learn_N.tolist() == theirs.learn_N.tolist()


@pytest.mark.parametrize("name", GENERATION)
@given(exchanges=EXCHANGES, last=st.booleans())
def test_messages_left_out_are_left_out_alone(name, exchanges, last):
    messages = fitted(name, exchanges, None)
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    wanted = [i for i in (turns[-1:] if last else turns) if messages[i].get("learn") is not False]
    learn = "last" if last else "assistant"
    if not wanted:
        with pytest.raises(ValueError, match="nothing to learn"):
            render_chat(messages, MARKED[name], learn=learn)
        return
    each = [
        render_chat([{**m, "weight": int(j == i)} for j, m in enumerate(bare(messages))], UNMARKED[name]).learn_N
        for i in wanted
    ]
    assert np.sum(each, axis=0).max() == 1
    for tokenizers in (MARKED, UNMARKED):
        np.testing.assert_array_equal(
            render_chat(messages, tokenizers[name], learn=learn).learn_N, np.any(each, axis=0)
        )


def learnt(template, messages, **options):
    """What is learnt: the text of each run of learnt tokens."""
    tokenizer = tokenizer_with(template)
    sample = render_chat(messages, tokenizer, **options)
    assert sample.tokens_N.tolist() == tokenizer.apply_chat_template(
        bare(messages), tools=options.get("tools"), return_dict=False, **options.get("template_kwargs", {})
    )
    edges = np.flatnonzero(np.diff(np.pad(sample.learn_N.astype(int), 1)))
    return [tokenizer.decode(sample.tokens_N[a:b]) for a, b in edges.reshape(-1, 2)]


def chat(*contents, system=None):
    """User and assistant in turn."""
    roles = ("user", "assistant")
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, *({"role": roles[i % 2], "content": content} for i, content in enumerate(contents))]


QWEN3 = """
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- set content = m.content -%}
{%- set thought = m.reasoning_content or '' -%}
{%- if '</think>' in content -%}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\n' -}}
{%- if loop.index0 > ns.last and (loop.last or thought) -%}{{- '<think>\n' + thought + '\n</think>\n\n' -}}{%- endif -%}
{{- content -}}
{%- for c in m.tool_calls or [] -%}
{%- if content or not loop.first -%}{{- '\n' -}}{%- endif -%}
{{- '<tool_call>\n' + (c.function | tojson) + '\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- elif m.role == 'tool' -%}
{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' -}}
{%- else -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}
{%- if enable_thinking is false -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}{%- endif -%}"""


def called(thought, *calls, content=""):
    calls = [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]
    return {"role": "assistant", "content": content, "reasoning_content": thought, "tool_calls": calls}


def test_thinking_that_the_template_strips_from_earlier_turns_is_not_there_to_learn():
    messages = chat("2 + 2?", "<think>\nadd\n</think>\n\n4", "3 + 3?", "<think>\nagain\n</think>\n\n6")
    assert learnt(QWEN3, messages) == ["4<|im_end|>", "<think>\nagain\n</think>\n\n6<|im_end|>"]
    apart = [{**m, "content": m["content"].split("\n\n")[-1]} for m in messages]
    apart[1]["reasoning_content"], apart[3]["reasoning_content"] = "add", "again"
    assert learnt(QWEN3, apart) == learnt(QWEN3, messages)
    assert learnt(QWEN3, messages, learn="last") == ["<think>\nagain\n</think>\n\n6<|im_end|>"]
    assert learnt(QWEN3, chat("a", "b", "a", "b", "a", "b", system="s")) == [
        "b<|im_end|>",
        "b<|im_end|>",
        "<think>\n\n</think>\n\nb<|im_end|>",
    ]


def test_what_the_generation_prompt_writes_of_a_turn_is_not_learnt():
    messages = chat("a", "b", "c", "d", "e", "")
    found = learnt(QWEN3, messages, template_kwargs={"enable_thinking": False})
    assert found == ["b<|im_end|>", "d<|im_end|>", "<|im_end|>"]


def encoded(*said, learn="assistant"):
    return encode_chat({"messages": [*chat("a"), *said]}, tokenizer=tokenizer_with(QWEN3), learn=learn)


@pytest.mark.parametrize("learn", ["assistant", "last"])
@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<{{ m.role }}>{{ m.text }}\n{% endfor %}",
        "{% for m in messages %}<{{ m.role }}>{% generation %}!\n{% endgeneration %}{% endfor %}",
    ],
    ids=["of another field", "of roles"],
)
def test_a_template_that_leaves_out_what_the_assistant_says_is_told(template, learn):
    record = {"messages": chat("who are you", "somebody", "who", "you know")}
    with pytest.raises(ValueError, match=r"does not write what the assistant says in message .*3: does it read mess"):
        encode_chat(record, tokenizer=tokenizer_with(template), learn=learn)


def test_a_template_may_write_what_is_said_in_its_own_way():
    spread = "{% for m in messages %}<{{ m.role }}>{{ m.content | replace('a', '  a\n') | trim }}\n{% endfor %}"
    for template, said in (
        (QWEN3, "<think>why</think>a b"),
        (QWEN3, [{"type": "text", "text": "a b"}]),
        (spread, "a b"),
    ):
        assert encode_chat({"messages": chat("c", said)}, tokenizer=tokenizer_with(template)).learn_N.any()


@pytest.mark.parametrize("empty", ["", " \n", [], [{"type": "text", "text": " "}]])
def test_records_whose_assistant_says_nothing_are_no_chats(empty):
    silent, said = {"role": "assistant", "content": empty}, {"role": "assistant", "content": "b"}
    with pytest.raises(ValueError, match=r"says nothing in message 1, 4, with no tool_calls .* \"learn\": false"):
        encoded(silent, *chat("c"), said, silent)


def test_a_message_that_says_nothing_may_call_or_think_or_be_left_out():
    silent, said = {"role": "assistant", "content": ""}, {"role": "assistant", "content": "b"}
    for busy in ({**silent, "reasoning_content": "so"}, called("", ("g", {}))):
        assert encoded(busy).learn_N.any()
    assert encoded({**silent, "learn": False}, *chat("c"), said).learn_N.any()
    assert encoded({"role": "assistant", "content": None, "tool_calls": [{"name": "g"}]}).learn_N.any()
    assert encoded(silent, *chat("c"), said, learn="last").learn_N.any(), "it is not learnt"


def test_calls_of_tools_are_learnt_in_every_turn_and_results_are_not():
    asked, result = {"role": "user", "content": "sum?"}, {"role": "tool", "content": "4"}
    steps = [asked, called("use f", ("f", {"x": 1}), ("g", {})), result, {"role": "assistant", "content": "4!"}]
    call = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    other = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    assert learnt(QWEN3, steps) == [
        f"<think>\nuse f\n</think>\n\n{call}\n{other}<|im_end|>",
        "<think>\n\n</think>\n\n4!<|im_end|>",
    ]
    bare_call = [asked, called("", ("g", {})), result]
    assert learnt(QWEN3, [*steps, *bare_call, *chat("and?", "5")[1:]]) == [
        f"{call}\n{other}<|im_end|>",
        "4!<|im_end|>",
        f"{other}<|im_end|>",
        "<think>\n\n</think>\n\n5<|im_end|>",
    ]
    said = [asked, called("", ("f", {"x": 1}), content="So:"), result, *chat("x", "y")[1:], *chat("and?", "5")]
    assert learnt(QWEN3, said)[0] == f"So:\n{call}<|im_end|>"


def test_a_template_that_trims_learns_what_it_writes():
    gemma = unmarked(GENERATION["gemma"])
    assert learnt(gemma, chat(" a ", "\n b\n", "c", "  ", "d", "e ")) == [
        "b<end_of_turn>",
        "<end_of_turn>",
        "e<end_of_turn>",
    ]
    with pytest.raises(ValueError, match=r"^the template refuses the chat: TemplateError: no system role$"):
        learnt(gemma, chat("a", "b", system="s"))


def test_a_system_message_of_the_template_is_not_learnt():
    template = (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nassistant\n<|im_end|>\n' }}{% endif %}"
        + unmarked(GENERATION["chatml"])
    )
    assert learnt(template, chat("a", "b")) == ["b<|im_end|>"]
    assert learnt(template, chat("a", "b", "c", "d", system="s")) == ["b<|im_end|>", "d<|im_end|>"]
    assert learnt(template, chat("a", "hello", "b", "c")[1:]) == ["hello<|im_end|>", "c<|im_end|>"]


LAST_USER = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
)
MISTRAL_TOOLS = (
    LAST_USER + "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% elif m.role == 'user' %}{% if tools and loop.index0 == ns.last %}{{ (tools | tojson) }}{% endif %}"
    "{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}{% endfor %}"
)


def test_tools_that_move_to_the_last_question_are_not_learnt():
    messages = chat("a", "b", "a", "b", "c", "d")
    assert learnt(MISTRAL_TOOLS, messages, tools=[TOOL]) == [" b</s>", " b</s>", " d</s>"]


HARMONY = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|start|>assistant' }}"
    "{% if m.thinking and loop.last %}{{ '<|channel|>analysis<|message|>' + m.thinking + '<|end|><|start|>assistant' }}"
    "{% endif %}{{ '<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)


def test_the_last_turn_may_end_with_a_token_of_its_own():
    messages = [{**m, "thinking": "hm"} if m["role"] == "assistant" else m for m in chat("a", "b", "c", "d")]
    assert learnt(HARMONY, messages) == [
        "<|channel|>final<|message|>b<|end|>",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>d<|return|>",
    ]


def test_what_ends_the_chat_is_learnt_once():
    template = unmarked(GENERATION["phi"]) + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    assert learnt(template, chat("a", "b", "c", "d", "e", "f")) == ["b<|end|>", "d<|end|>", "f<|end|>\n</s>"]


def test_a_turn_without_an_end_of_its_own_ends_before_the_next():
    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    assert learnt(template, chat("a", "b", "c", "d\n")) == ["\nb", "\nd\n"]
    plain = (
        "{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
    )
    assert learnt(plain, chat("a", "b", "c", "hello  ")) == ["b\n\n", "hello  \n\n"]


def test_a_turn_whose_prompt_opens_thinking_that_is_stripped_is_learnt_as_it_is_written():
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' + m.content }}"
        "{% else %}{{ '<|assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
    )
    assert learnt(template, chat("a", "<think>\nx\n</think>\n\nb", "c", "d")) == ["\n\nb</s>", "d</s>"]


def test_a_token_across_the_border_of_a_turn_is_learnt():
    template = (
        "{% for m in messages %}{{ m.role | upper + ': ' + m.content + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
    )
    tokenizer = tokenizer_with(template)
    assert tokenizer.tokenize("ASSISTANT: hello")[-1] == "Ġhello"
    assert learnt(template, chat("a", "hello")) == [" hello</s>"]


def test_a_tokenizer_that_begins_every_text_begins_a_chat_once():
    from tokenizers.processors import TemplateProcessing

    for tokenizer in (tokenizer_with(GENERATION["mistral"]), tokenizer_with(unmarked(GENERATION["mistral"]))):
        bos = tokenizer.bos_token_id
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", bos)])
        assert tokenizer("a")["input_ids"][0] == bos
        for learn in ("assistant", "last"):
            assert render_chat(chat("a", "b"), tokenizer, learn=learn).tokens_N.tolist().count(bos) == 1


def test_contents_that_spell_what_the_template_writes_are_told_from_it():
    asked = "a<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n<|im_start|>user\na"
    for template in (unmarked(GENERATION["chatml"]), COUNT + unmarked(GENERATION["chatml"])):
        assert learnt(template, chat(asked, "b", "c", "d")) == ["b<|im_end|>", "d<|im_end|>"]


def test_the_first_message_may_be_the_assistants():
    assert learnt(QWEN3, chat("", "hello", "b", "c")[1:]) == ["hello<|im_end|>", "<think>\n\n</think>\n\nc<|im_end|>"]
    assert learnt(QWEN3, chat("", "<think>\nx\n</think>\n\nb")[1:]) == ["<think>\nx\n</think>\n\nb<|im_end|>"]


def test_a_block_that_leaves_out_the_end_of_a_turn_leaves_it_out_of_the_last_alone():
    template = GENERATION["zephyr"].replace(
        "{{ m.content + eos_token }}{% endgeneration %}", "{{ m.content }}{% endgeneration %}{{ eos_token }}"
    )
    assert learnt(template, chat("a", "b", "c", "d")) == ["b", "d"]
    assert learnt(template, chat("a", "b", "c", "d"), learn="last") == ["d"]


def test_a_named_template_is_used():
    tokenizer = tokenizer_with(GENERATION["chatml"])
    other = render_chat(chat("a", "b"), tokenizer, template_kwargs={"chat_template": GENERATION["zephyr"]})
    assert tokenizer.decode(other.tokens_N) == "<|user|>\na</s>\n<|assistant|>\nb</s>\n"


def test_a_record_becomes_a_sample():
    call = {"name": "f", "arguments": json.dumps({"x": 1})}
    conversation = conversation_of(
        {
            "conversations": [
                {"from": "human", "value": "sum?"},
                {"from": "function_call", "value": json.dumps(call)},
                {"from": "observation", "value": "4"},
                {"from": "gpt", "value": "It is 4."},
            ],
            "tools": json.dumps([TOOL]),
        }
    )
    assert learnt(unmarked(GENERATION["chatml"]), conversation.messages, tools=conversation.tools) == [
        '\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>',
        "It is 4.<|im_end|>",
    ]


USER, SAYS = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CHATML = UNMARKED["chatml"]


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([], {}, "a chat of no messages: nothing to learn."),
        ("hi", {}, "a chat is a list of messages, got 'hi' (str)."),
        (USER, {}, "a chat is a list of messages, got {'role': 'user', 'content': 'a'} (dict)."),
        ([USER], {}, "nothing to learn: no message has the role 'assistant'; there are 'user'."),
        (
            [USER, {**SAYS, "learn": False}, USER, {**SAYS, "weight": 0}],
            {},
            "nothing to learn: the assistant's messages 1, 3 have learn=False or weight=0.",
        ),
        (
            [USER, SAYS, USER, {**SAYS, "weight": 0}],
            {"learn": "last"},
            "nothing to learn: the assistant's messages 3 have learn=False or weight=0.",
        ),
        ([USER, SAYS], {"learn": "all"}, "learn='all': what to learn of a chat is 'assistant' or 'last'."),
        (
            ["hi", {"role": 1, "content": 2}, {**USER, "learn": True}, {**SAYS, "weight": 0.5, "tool_calls": "f"}],
            {},
            "message 0: 'hi' (str) is not a message: an object with a role and a content.\n"
            "message 1: its role is 1, not a string.\n"
            "message 1: its content is 2 (int): it must be a string, or a list of parts.\n"
            "message 2: learn=True for the role 'user': only what the assistant says is learnt.\n"
            "message 3: its tool_calls are 'f': they must be a list of objects.\n"
            "message 3: weight=0.5: a message is learnt (1) or not (0).",
        ),
        (
            [USER, {**SAYS, "content": "\ud800"}],
            {},
            r"the text holds half a surrogate pair, '\ud800' at character 51: it is not Unicode text.",
        ),
    ],
)
def test_a_chat_that_cannot_be_learnt_says_why(messages, options, message):
    with pytest.raises(ValueError) as caught:
        render_chat(messages, CHATML, **options)
    assert str(caught.value) == message


EACH = "{% for m in messages %}{{ m.content }}{% endfor %}"
REMEDY = "Give the template a {% generation %} block around what the assistant says."
ODD = [
    ("{{ raise_exception('alternate!') }}", "the template refuses the chat: TemplateError: alternate!"),
    ("{{ messages[0].content + 1 }}", "the template refuses the chat: TypeError: can only concatenate str"),
    ("{% for m in messages", "the template refuses the chat: TemplateSyntaxError: "),
    (
        "{% if messages | length < 2 %}{{ raise_exception('two!') }}{% endif %}{{ messages[1].content }}",
        "the template refuses the chat with its first 1 messages alone: TemplateError: two!",
    ),
    (
        "{{ messages | length }}",
        f"message 1: the template does not write its content, so what to learn of it is unknown. {REMEDY}",
    ),
    (
        "{{ messages | length }}" + EACH.replace("m.content", "m.content | length ~ m.content"),
        "message 1: cannot be told from the rest: with another content of it, the template also writes '6' instead of "
        f"'1b'. {REMEDY}",
    ),
    (
        "{{ messages | length }}" + EACH + "{{ messages[-1].content | length }}",
        "message 1: cannot be told from the rest: with another content of it, the template also writes '6' instead of "
        f"'2ab1'. {REMEDY}",
    ),
    (
        "{{ messages | length }}" + EACH.replace("m.content", "m.content if m.role == 'assistant'"),
        "message 1: cannot tell where it begins: the template does not write the content of the message before it. "
        f"{REMEDY}",
    ),
    (
        "{{ messages[0].content }}{% generation %}{% endgeneration %}",
        "nothing to learn: the template writes nothing of the assistant's messages 1.",
    ),
]


@pytest.mark.parametrize(("template", "message"), ODD)
def test_a_template_that_cannot_be_learnt_from_says_why(template, message):
    with pytest.raises(ValueError) as caught:
        render_chat([USER, SAYS], tokenizer_with(template))
    assert str(caught.value).startswith(message)


def test_a_turn_of_no_known_end_is_refused():
    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
    )
    with pytest.raises(
        ValueError, match=r"^message 1: cannot tell where it ends: were it the last, .* '</s>', but here"
    ):
        learnt(template, chat("a", "b", "c", "d"))


def test_a_tokenizer_without_a_template_says_so():
    with pytest.raises(ValueError, match=r"^this tokenizer has no template for this chat: "):
        render_chat([USER, SAYS], PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer()))


def test_what_is_no_tokenizer_of_transformers_is_refused_by_name():
    with pytest.raises(TypeError, match="a TextTokenizer knows no chat templates: give what transformers'"):
        render_chat([USER, SAYS], read_tokenizer("bytes"))
