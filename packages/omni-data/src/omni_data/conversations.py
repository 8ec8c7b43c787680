"""A record of one of the common formats to a conversation: messages as chat templates read them. Pure.

A format is known by its fields; the first that fits is taken:

- `messages`, or `conversations`, of `role` and `content` (OpenAI), or of `from` and `value` (ShareGPT), each with
  `system` and `tools` beside it.
- `instruction`, `output` (Alpaca), and `input`, `history`, `system`.
- `prompt` and `completion`, `prompt` and `response`, `question` and `answer`: strings, or lists of messages, of which
  only the second is learnt.

`tools` may be a list or its JSON. Other fields of a record are not looked at, unless one looks like a typo.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from omni_data.turns import THOUGHTS, Message

ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant"},
    **{"function_call": "assistant", "observation": "tool", "function": "tool", "tool_response": "tool"},
}
"""What each role of a record is for a template. A `function_call` is the assistant's; its content is the calls."""

_LISTS = ("messages", "conversations")
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
_ALPACA = ("instruction", "output")
_OPENAI = ("role", "content", "name", "tool_calls", "tool_call_id", *THOUGHTS, "learn", "weight")
_SHAREGPT = ("from", "value", "learn", "weight")
_KNOWN = (*_LISTS, "instruction + output", *map(" + ".join, _PAIRS))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, of which a template makes a text, and what the assistant in them may call.

    Attributes:
        messages: each an object with a `role`, a `content`, and other fields that have a value.
        tools: JSON schemas; None if there are none.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] | None = None


def conversation_of(record: object) -> Conversation:
    """The conversation that `record` holds.

    >>> conversation_of({"question": "2 + 2?", "answer": "4"}).messages
    ({'role': 'user', 'content': '2 + 2?'}, {'role': 'assistant', 'content': '4'})

    Raises:
        ValueError: if the record has no known format, or a message of it is not one; all such messages at once. It does
            not say where the record is from: the caller does.
    """
    record = record_of(record)
    beside: tuple[str, ...] = ("system", "tools")
    if key := next((key for key in _LISTS if key in record), None):
        refuse_typos(record, (key, *beside))
        messages = messages_of(record[key], key)
    elif all(key in record for key in _ALPACA):
        beside = (*beside, "input", "history")
        refuse_typos(record, (*_ALPACA, *beside))
        messages = _alpaca(record)
    elif pair := next((pair for pair in _PAIRS if all(key in record for key in pair)), None):
        refuse_typos(record, (*pair, *beside))
        messages = [*unlearnt(said(record, pair[0], "user")), *said(record, pair[1], "assistant")]
    else:
        raise ValueError(_unknown(record))
    if "system" in record and not (messages and messages[0]["role"] in ("system", "developer")):
        messages = [*said(record, "system", "system"), *messages] if record["system"] else messages
    return Conversation(tuple(messages), tools_of(record))


def record_of(record: object) -> dict[str, Any]:
    """The fields of a record that have a value: columns of a table are null where a record lacks them."""
    if not isinstance(record, Mapping):
        raise ValueError(f"a record must be an object, got {_shown(record)}.")
    return {str(key): value for key, value in record.items() if value is not None}


def messages_of(value: object, field: str) -> list[Message]:
    """The messages in the list `value`, which `field` holds.

    Raises:
        ValueError: if it is not a list of messages.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"field {field!r} holds {_shown(value)}: it must be a list of messages.")
    if not value:
        raise ValueError(f"field {field!r} holds no messages.")
    messages, problems = [], []
    for i, turn in enumerate(value):
        try:
            messages.append(_message(turn))
        except ValueError as error:
            problems.append(f"{field}[{i}]: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return messages


def said(record: Mapping[str, Any], field: str, role: str) -> list[Message]:
    """What `field` holds, as messages: a string is said by `role`."""
    value = record[field]
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, Sequence):
        raise ValueError(f"field {field!r} holds {_shown(value)}: it must be a string, or a list of messages.")
    return messages_of(value, field)


def unlearnt(messages: Iterable[Message]) -> list[Message]:
    """The messages, with those of the assistant not to be learnt."""
    return [{**message, "learn": False} if message["role"] == "assistant" else message for message in messages]


def tools_of(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...] | None:
    """The tools of a record: a list, or its JSON."""
    tools = _parsed(record.get("tools") or [], "field 'tools'")
    tools = [_parsed(tool, "field 'tools'") for tool in tools] if isinstance(tools, list | tuple) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"field 'tools' holds {_shown(tools)}: it must be a list of JSON schemas.")
    return tuple(tools) or None


def refuse_typos(found: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises `ValueError` if a field is not known and is close to one that is known and absent. Pure."""
    absent = [key for key in known if key not in found]
    for key in found:
        if key not in known and (near := get_close_matches(key, absent, n=1, cutoff=0.8)):
            raise ValueError(f"unknown field {key!r}; did you mean {near[0]!r}? Known are {', '.join(known)}.")


def _message(turn: object) -> Message:
    """One message, as templates read it."""
    if not isinstance(turn, Mapping):
        raise ValueError(f"a message must be an object, got {_shown(turn)}.")
    given = [str(key) for key in turn]
    turn = {str(key): value for key, value in turn.items() if value is not None}
    theirs = "from" in turn or ("value" in turn and "role" not in turn)
    known = _SHAREGPT if theirs else _OPENAI
    refuse_typos(turn, known)
    who = turn.get(known[0])
    if who is None:
        raise ValueError(f"no field {known[0]!r}; there are {', '.join(map(repr, turn)) or 'none'}.")
    if not isinstance(who, str) or who not in ROLES:
        near = get_close_matches(str(who), ROLES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown role {who!r:.60}; known are {', '.join(ROLES)}.{hint}")
    content = turn.get(known[1], "")
    if not (isinstance(content, str) or (isinstance(content, list | tuple) and all(map(_is_part, content)))):
        raise ValueError(f"its {known[1]} is {_shown(content)}: it must be a string, or a list of parts with a type.")
    if known[1] not in turn and not (ROLES[who] == "assistant" and (turn.get("tool_calls") or _thoughts(turn))):
        if known[1] in given:
            raise ValueError(f"its {known[1]} is null, which only an assistant with tool_calls or reasoning may have.")
        raise ValueError(f"no field {known[1]!r}; there are {', '.join(map(repr, turn))}.")
    message = {key: value for key, value in turn.items() if key not in known[:2]}
    message = {"role": ROLES[who], "content": content, **message}
    if who == "function_call":
        calls = _parsed(content, "its function_call")
        message |= {"content": "", "tool_calls": calls if isinstance(calls, list) else [calls]}
    if "tool_calls" in message:
        message["tool_calls"] = _calls(message["tool_calls"])
    return message


def _calls(calls: object) -> list[Mapping[str, Any]]:
    """Calls of tools, their arguments as an object: what is said as JSON would be quoted again by a template."""
    calls = _parsed(calls, "tool_calls")
    if not isinstance(calls, list | tuple):
        raise ValueError(f"its tool_calls are {_shown(calls)}: they must be a list of calls.")
    parsed = []
    for i, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(f"tool call {i} is {_shown(call)}: it must have a function with a name and arguments.")
        given = function.get("arguments")
        arguments = _parsed({} if given in (None, "") else given, f"arguments of tool call {i}")
        if not isinstance(arguments, Mapping):
            raise ValueError(f"arguments of tool call {i} are {_shown(arguments)}: they must be an object.")
        own = {key: call[key] for key in ("type", "id") if call.get(key) is not None}
        parsed.append({"type": "function", **own, "function": {"name": function["name"], "arguments": arguments}})
    return parsed


def _alpaca(record: Mapping[str, Any]) -> list[Message]:
    """The messages of an instruction: its input, if there is one, follows in a line of its own."""
    strings = {key: record.get(key, "") for key in (*_ALPACA, "input")}
    if odd := {key: value for key, value in strings.items() if not isinstance(value, str)}:
        raise ValueError("\n".join(f"field {key!r} holds {_shown(odd[key])}: it must be a string." for key in odd))
    history = record.get("history") or []
    if not (isinstance(history, list | tuple) and all(map(_is_exchange, history))):
        raise ValueError(f"field 'history' holds {_shown(history)}: it must be a list of [question, answer].")
    asked = "\n".join(text for text in (strings["instruction"], strings["input"]) if text)
    exchanges = [*history, (asked, strings["output"])]
    roles = ("user", "assistant")
    return [
        {"role": role, "content": text} for exchange in exchanges for role, text in zip(roles, exchange, strict=True)
    ]


def _is_exchange(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(text, str) for text in value)


def _is_part(value: object) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("type"), str)


def _thoughts(turn: Mapping[str, Any]) -> bool:
    return any(turn.get(key) for key in THOUGHTS)


def _parsed(value: Any, what: str) -> Any:
    """The value, or what it is the JSON of."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"{what}: {value!r:.60} is not JSON: {error}") from None


def _unknown(record: Mapping[str, Any]) -> str:
    """The complaint that no format fits."""
    found = ", ".join(map(repr, record)) or "none"
    if {"chosen", "rejected"} <= record.keys():
        return f"no conversation, but a preference pair: fields are {found}. Read it with `pair_of`."
    fields = [*_LISTS, *_ALPACA, *(key for pair in _PAIRS for key in pair)]
    for key in record:
        if key not in fields and (near := get_close_matches(key, fields, n=1, cutoff=0.7)):
            hint = f" Did you mean {near[0]!r} for {key!r}?"
            break
    else:
        hint = ""
    return f"no conversation: fields are {found}; known are {', '.join(_KNOWN)}.{hint}"


def _shown(value: object) -> str:
    return f"{value!r:.60} ({type(value).__name__})"
