"""Laws of conversations: every common format of a record becomes the same messages."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_data import Conversation, conversation_of

TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": [2, 2]}}}
SYSTEM = {"role": "system", "content": "Be short."}
USER, SAYS = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
THEIRS = {"user": "human", "assistant": "gpt", "system": "system"}


def sharegpt(messages):
    return [{"from": THEIRS[m["role"]], "value": m["content"]} for m in messages]


RECORDS = [
    {"messages": [SYSTEM, USER, SAYS]},
    {"messages": [USER, SAYS], "system": "Be short."},
    {"messages": [{**m, "tool_calls": None, "name": None} for m in (SYSTEM, USER, SAYS)], "tools": None},
    {"conversations": [SYSTEM, USER, SAYS], "id": 7},
    {"conversations": sharegpt([SYSTEM, USER, SAYS])},
    {"messages": sharegpt([USER, SAYS]), "system": "Be short.", "tools": "[]"},
    {"instruction": "Hi", "input": "", "output": "Hello!", "system": "Be short.", "history": None},
    {"prompt": "Hi", "completion": "Hello!", "system": "Be short."},
    {"prompt": [SYSTEM, USER], "completion": [SAYS]},
    {"prompt": [SYSTEM, USER], "response": "Hello!", "source": "somewhere", "score": 0.5},
    {"question": "Hi", "answer": "Hello!", "system": "Be short."},
]


@pytest.mark.parametrize("record", RECORDS)
def test_every_format_gives_the_same_messages(record):
    assert conversation_of(record) == Conversation((SYSTEM, USER, SAYS))


CALLS = [
    {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": "1"}]},
    {"role": "assistant", "tool_calls": [{"id": "1", "name": "add", "arguments": {"x": [2, 2]}}]},
    {"role": "assistant", "tool_calls": json.dumps([{**CALL, "id": "1"}])},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "1", "function": {"name": "add", "arguments": '{"x": [2, 2]}'}}],
    },
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_calls_have_their_arguments_as_an_object(call, tools):
    result = {"role": "tool", "content": "4", "tool_call_id": "1"}
    found = conversation_of({"messages": [USER, call, result, SAYS], "tools": tools})
    called = {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "1"}]}
    assert found == Conversation((USER, called, result, SAYS), (TOOL,))


@pytest.mark.parametrize("calls", [CALL["function"], [CALL["function"]]])
def test_a_function_call_is_the_assistants_and_an_observation_a_tools(calls):
    turns = [{"from": "function_call", "value": json.dumps(calls)}, {"from": "observation", "value": "4"}]
    assert conversation_of({"conversations": turns}).messages == (
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "4"},
    )


def test_what_a_template_may_read_is_kept():
    parts = [{"type": "image", "url": "a.png"}, {"type": "text", "text": "What is it?"}]
    messages = (
        {"role": "developer", "content": "Be short.", "name": "me"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "A cat.", "reasoning_content": "whiskers", "learn": False, "own": 1},
    )
    assert conversation_of({"messages": [*messages]}).messages == messages


def test_the_history_and_the_input_of_an_instruction_are_said():
    record = {"instruction": "Add", "input": "2, 2", "output": "4", "history": [["Hi", "Hello!"]]}
    assert conversation_of(record).messages == (
        USER,
        SAYS,
        *conversation_of({"prompt": "Add\n2, 2", "response": "4"}).messages,
    )


def test_of_a_prompt_nothing_is_learnt():
    found = conversation_of({"prompt": [USER, SAYS, USER], "completion": "Bye."}).messages
    assert [m.get("learn") for m in found] == [None, False, None, None]


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1))
def test_openai_and_sharegpt_say_the_same(exchanges):
    messages = [m for q, a in exchanges for m in ({**USER, "content": q}, {**SAYS, "content": a})]
    found = conversation_of({"messages": messages})
    assert found == conversation_of({"conversations": sharegpt(messages)}) == Conversation(tuple(messages))


KNOWN = (
    "known are messages, conversations, instruction + output, prompt + completion, prompt + response, "
    "question + answer."
)
ROLES = (
    "known are system, developer, user, assistant, tool, human, gpt, chatgpt, model, bot, function_call, observation, "
    "function, tool_response."
)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([USER], "a record must be an object, got [{'role': 'user', 'content': 'Hi'}] (list)."),
        ({}, f"no conversation: fields are none; {KNOWN}"),
        ({"text": "a"}, f"no conversation: fields are 'text'; {KNOWN}"),
        (
            {"message": [], "id": 1},
            f"no conversation: fields are 'message', 'id'; {KNOWN} Did you mean 'messages' for 'message'?",
        ),
        (
            {"instruction": "a", "ouput": "b"},
            f"no conversation: fields are 'instruction', 'ouput'; {KNOWN} Did you mean 'output' for 'ouput'?",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "no conversation, but a preference pair: fields are 'prompt', 'chosen', 'rejected'. "
            "Read it with `pair_of`.",
        ),
        (
            {"messages": [USER], "tool": []},
            "unknown field 'tool'; did you mean 'tools'? Known are messages, system, tools.",
        ),
        ({"messages": "Hi"}, "field 'messages' holds 'Hi' (str): it must be a list of messages."),
        ({"messages": []}, "field 'messages' holds no messages."),
        (
            {
                "messages": [
                    USER,
                    "Hi",
                    {"role": "usr", "content": ""},
                    {"content": "Hi"},
                    {"role": "user"},
                    {"role": "user", "content": 1},
                    {"role": "user", "content": [1]},
                    {"role": "user", "contents": "Hi"},
                    {"role": 3, "content": ""},
                    {"role": "assistant", "content": None, "tool_calls": None},
                ]
            },
            "messages[1]: a message must be an object, got 'Hi' (str).\n"
            f"messages[2]: unknown role 'usr'; {ROLES} Did you mean 'user'?\n"
            "messages[3]: no field 'role'; there are 'content'.\n"
            "messages[4]: no field 'content'; there are 'role'.\n"
            "messages[5]: its content is 1 (int): it must be a string, or a list of parts with a type.\n"
            "messages[6]: its content is [1] (list): it must be a string, or a list of parts with a type.\n"
            "messages[7]: unknown field 'contents'; did you mean 'content'? Known are role, content, name, tool_calls, "
            "tool_call_id, reasoning_content, reasoning, thinking, learn, weight.\n"
            f"messages[8]: unknown role 3; {ROLES}\n"
            "messages[9]: its content is null, which only an assistant with tool_calls or reasoning may have.",
        ),
        (
            {"conversations": [{"from": "gtp", "value": ""}, {"value": "a"}, {"from": "function_call", "value": "f("}]},
            f"conversations[0]: unknown role 'gtp'; {ROLES} Did you mean 'gpt'?\n"
            "conversations[1]: no field 'from'; there are 'value'.\n"
            "conversations[2]: its function_call: 'f(' is not JSON: Expecting value: line 1 column 1 (char 0)",
        ),
        (
            {
                "messages": [
                    {**SAYS, "tool_calls": 3},
                    {**SAYS, "tool_calls": [3]},
                    {**SAYS, "tool_calls": [{"function": {}}]},
                    {**SAYS, "tool_calls": [{"name": "f", "arguments": "[]"}]},
                    {**SAYS, "tool_calls": [{"name": "f", "arguments": "{"}]},
                ]
            },
            "messages[0]: its tool_calls are 3 (int): they must be a list of calls.\n"
            "messages[1]: tool call 0 is 3 (int): it must have a function with a name and arguments.\n"
            "messages[2]: tool call 0 is {'function': {}} (dict): it must have a function with a name and arguments.\n"
            "messages[3]: arguments of tool call 0 are [] (list): they must be an object.\n"
            "messages[4]: arguments of tool call 0: '{' is not JSON: Expecting property name enclosed in double "
            "quotes: line 1 column 2 (char 1)",
        ),
        (
            {"messages": [USER], "tools": {"a": 1}},
            "field 'tools' holds {'a': 1} (dict): it must be a list of JSON schemas.",
        ),
        (
            {"messages": [USER], "tools": "add"},
            "field 'tools': 'add' is not JSON: Expecting value: line 1 column 1 (char 0)",
        ),
        (
            {"instruction": 1, "output": ["a"]},
            "field 'instruction' holds 1 (int): it must be a string.\n"
            "field 'output' holds ['a'] (list): it must be a string.",
        ),
        (
            {"instruction": "a", "output": "b", "history": ["a"]},
            "field 'history' holds ['a'] (list): it must be a list of [question, answer].",
        ),
        ({"question": "a", "answer": 4}, "field 'answer' holds 4 (int): it must be a string, or a list of messages."),
    ],
)
def test_a_record_that_is_no_conversation_says_why(record, message):
    with pytest.raises(ValueError) as caught:
        conversation_of(record)
    assert str(caught.value) == message
