"""A chat to a sample: the tokens that a template makes of it, of which those of the assistant are learnt.

A template that marks what the assistant says with `{% generation %}` decides that itself, and the mask is that of
transformers. For any other, the rule is: of each turn of the assistant, learnt are the tokens from the end of the
generation prompt to the end of the turn, with the special token that ends it and without white space after that; the
end of the last turn is that of the text.
A token across the border of a turn is learnt, as it holds some of it. Tool calls and thinking are what the assistant
says; results of tools are not.

Uses of transformers what its fast tokenizers have, and does not import it.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from omni_data.conversations import conversation_of
from omni_data.document import checked_text
from omni_data.sample import Sample, sample_of
from omni_data.turns import THOUGHTS, Message, find_turns

Learn = Literal["assistant", "last"]
"""What of a chat to learn: all that the assistant says, or its last message."""

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class ChatTokenizer(Protocol):
    """What is used of a fast tokenizer of transformers."""

    @property
    def is_fast(self) -> bool: ...

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str: ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any: ...

    def __call__(self, text: Any, **kwargs: Any) -> Any: ...


def render_chat(
    messages: Sequence[Message],
    tokenizer: ChatTokenizer,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    learn: Learn = "assistant",
    template_kwargs: Mapping[str, Any] | None = None,
) -> Sample:
    """The tokens of a chat, and which of them to learn.

    The template writes all special tokens; none is added.

    Args:
        messages: each with `role`, `content` and what else the template reads (`tool_calls`, `reasoning_content`).
            One of the assistant with `"learn": False` or `"weight": 0` is read and not learnt.
        tools: what the assistant may call, as JSON schemas.
        learn: `"assistant"`, or `"last"` for the last message of the assistant alone.
        template_kwargs: more for the template (`enable_thinking`), or another `chat_template`.

    Raises:
        ValueError: if there is nothing to learn, a message is not one, the template refuses the chat, or what it writes
            of the assistant cannot be told from the rest.
        TypeError: if the tokenizer is none of transformers.
    """
    turns = _choose_turns(messages, learn)
    chat = [{k: v for k, v in message.items() if v is not None and k not in _CONTROLS} for message in messages]
    more = {**(template_kwargs or {}), "tools": list(tools) if tools else None}
    template = _template(tokenizer, more)
    if not tokenizer.is_fast:
        raise ValueError("which tokens to learn is known of fast tokenizers only: load one that has a tokenizer.json.")

    def render(messages: Sequence[Message], /, *, prompt: bool = False, **options: Any) -> Any:
        options = {"tokenize": False, "add_generation_prompt": prompt, **options}
        try:
            return tokenizer.apply_chat_template(list(messages), **more, **options)
        except Exception as error:
            whole = "" if len(messages) == len(chat) else f" with its first {len(messages)} messages alone"
            raise ValueError(f"the template refuses the chat{whole}: {type(error).__name__}: {error}") from error

    marked = _GENERATION.search(template) is not None
    every = turns == [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    ids, learn_N = [], np.ones(0, np.bool_)
    if marked:
        encoded = render(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ids, learn_N = encoded["input_ids"], np.asarray(encoded["assistant_masks"], np.bool_)
    if not (marked and every):
        text = checked_text(render(chat))
        ids, turn_N = _mask_turns(tokenizer, render, chat, text, turns)
        learn_N = turn_N & learn_N if marked else turn_N
    if not learn_N.any():
        raise ValueError(f"nothing to learn: the template writes nothing of the assistant's messages {_names(turns)}.")
    return sample_of(ids, learn_N.tolist())


def encode_chat(
    record: object,
    *,
    tokenizer: ChatTokenizer,
    learn: Learn = "assistant",
    template_kwargs: Mapping[str, Any] | None = None,
) -> Sample:
    """The sample of a record that holds a conversation, in whatever format `conversation_of` knows.

    Raises:
        ValueError: as `conversation_of` and `render_chat`; if a message to learn says, thinks and calls nothing, which
            would teach to answer with nothing; and if the template writes nothing of what such messages say.
    """
    chat = conversation_of(record)
    turns = find_said(chat.messages, learn)
    sample = render_chat(chat.messages, tokenizer, tools=chat.tools, learn=learn, template_kwargs=template_kwargs)
    # What tokens spell may differ from what they were made of, so a text is no proof that something is missing.
    learnt = sample.tokens_N[sample.learn_N].tolist()
    said = [_solid(_text(chat.messages[i])) for i in turns]
    if any(said) and not _has_any(tokenizer.decode(learnt), said):
        more = {**(template_kwargs or {}), "tools": list(chat.tools) if chat.tools else None, "tokenize": False}
        if not _has_any(tokenizer.apply_chat_template(list(chat.messages), **more), said):
            raise ValueError(
                f"the template does not write what the assistant says in message {_names(turns)}: does it read "
                "message.content?"
            )
    return sample


def find_said(messages: Sequence[Message], learn: Learn) -> list[int]:
    """Which messages are learnt. Pure.

    Raises:
        ValueError: as `render_chat`, and if one of them says, thinks and calls nothing.
    """
    turns = _choose_turns(messages, learn)
    if silent := [i for i in turns if not _says(messages[i])]:
        raise ValueError(
            f"the assistant says nothing in message {_names(silent)}, with no tool_calls or reasoning either: leave "
            'the chat out, or mark such messages with "learn": false.'
        )
    return turns


def _text(message: Message) -> str:
    """What `message` says beside what it thinks."""
    content = message.get("content") or ""
    parts = [content] if isinstance(content, str) else [str(part.get("text") or "") for part in content]
    return "".join(parts).rpartition("</think>")[2]


def _solid(text: str) -> str:
    return "".join(text.split())


def _has_any(text: str, said: Sequence[str]) -> bool:
    return any(words in _solid(text) for words in said if words)


_CONTROLS = ("learn", "weight")


def _says(message: Message) -> bool:
    """Whether there is something in a message beside white space."""
    content = message.get("content") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    said = any(part.get("type") != "text" or str(part.get("text") or "").strip() for part in parts)
    return said or any(message.get(key) for key in ("tool_calls", *THOUGHTS))


def _choose_turns(messages: Sequence[Message], learn: Learn) -> list[int]:
    """Which messages to learn."""
    if learn not in ("assistant", "last"):
        raise ValueError(f"learn={learn!r}: what to learn of a chat is 'assistant' or 'last'.")
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(f"a chat is a list of messages, got {messages!r:.60} ({type(messages).__name__}).")
    if not messages:
        raise ValueError("a chat of no messages: nothing to learn.")
    problems = [f"message {i}: {problem}" for i, message in enumerate(messages) for problem in _problems(message)]
    if problems:
        raise ValueError("\n".join(problems))
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        roles = ", ".join(dict.fromkeys(repr(message["role"]) for message in messages))
        raise ValueError(f"nothing to learn: no message has the role 'assistant'; there are {roles}.")
    chosen = turns[-1:] if learn == "last" else turns
    if wanted := [i for i in chosen if messages[i].get("learn") is not False and messages[i].get("weight") != 0]:
        return wanted
    raise ValueError(f"nothing to learn: the assistant's messages {_names(chosen)} have learn=False or weight=0.")


def _problems(message: object) -> list[str]:
    """What keeps `message` from being rendered."""
    if not isinstance(message, Mapping):
        return [f"{message!r:.60} ({type(message).__name__}) is not a message: an object with a role and a content."]
    problems = []
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        problems.append(f"its role is {role!r:.60}, not a string.")
    parts = isinstance(content, list | tuple) and all(isinstance(part, Mapping) for part in content)
    if not (content is None or isinstance(content, str) or parts):
        kind = type(content).__name__
        problems.append(f"its content is {content!r:.60} ({kind}): it must be a string, or a list of parts.")
    calls = message.get("tool_calls")
    if not (calls is None or (isinstance(calls, list | tuple) and all(isinstance(call, Mapping) for call in calls))):
        problems.append(f"its tool_calls are {calls!r:.60}: they must be a list of objects.")
    learn, weight = message.get("learn"), message.get("weight")
    if learn not in (None, True, False):
        problems.append(f"learn={learn!r:.60} is neither true nor false.")
    if learn is True and role != "assistant":
        problems.append(f"learn=True for the role {role!r}: only what the assistant says is learnt.")
    if weight not in (None, 0, 1):
        problems.append(f"weight={weight!r:.60}: a message is learnt (1) or not (0).")
    return problems


def _template(tokenizer: ChatTokenizer, more: Mapping[str, Any]) -> str:
    if not hasattr(tokenizer, "get_chat_template"):
        raise TypeError(
            f"a {type(tokenizer).__name__} knows no chat templates: give what transformers' AutoTokenizer makes of it."
        )
    try:
        return tokenizer.get_chat_template(more.get("chat_template"), more["tools"])
    except ValueError as error:
        raise ValueError(
            f"this tokenizer has no template for this chat: {error}\n"
            "Name one as template_kwargs={'chat_template': ...}."
        ) from error


def _mask_turns(
    tokenizer: ChatTokenizer, render: Any, chat: Sequence[Message], text: str, turns: Sequence[int]
) -> tuple[list[int], NDArray[np.bool_]]:
    """The tokens of `text`, and which of them are of these turns."""
    # Tokenised once and whole, as a model reads it: a turn tokenised alone may have other tokens at its borders.
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    offsets_N2 = np.asarray(encoded["offset_mapping"], np.int64).reshape(-1, 2)
    starts_N, ends_N = offsets_N2[:, 0], offsets_N2[:, 1]

    @cache
    def is_special(token_id: int) -> bool:
        # Public, and cheap where a vocabulary has many special tokens. A lone space of some decodes to nothing, too.
        return not tokenizer.decode([token_id], skip_special_tokens=True) and bool(tokenizer.decode([token_id]))

    def special_end(character: int) -> int | None:
        token = int(np.searchsorted(starts_N, character))
        at = token < len(ids) and starts_N[token] == character and is_special(ids[token])
        return int(ends_N[token]) if at else None

    learn_N = np.zeros(len(ids), np.bool_)
    for start, stop in find_turns(render, chat, text, turns, special_end):
        bare = start + len(text[start:stop].rstrip())
        ended = start < bare < stop and is_special(ids[int(np.searchsorted(starts_N, bare)) - 1])
        # From the first token to the last, as some tokenizers give tokens of white space no width.
        first, past = np.searchsorted(ends_N, start, "right"), np.searchsorted(starts_N, bare if ended else stop)
        learn_N[first:past] = start < stop
    return ids, learn_N


def _names(turns: Sequence[int]) -> str:
    return ", ".join(map(str, turns))
