"""Where a rendered chat holds what the assistant said, for templates that do not tell. Text only. Pure.

A turn begins where the generation prompt before it ends, for that is all a model is given, and ends where the template
ends it. Mostly a chat renders to a beginning of every longer one; then the turn is what it adds to the generation
prompt of the messages before. Where the rest changes how a turn is written (thinking that earlier turns lose, tools
that move to the last question), the turn is looked for as the whole chat writes it: a second rendering that differs in
contents alone has the same text between them, and marks where they were.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Message = Mapping[str, Any]
"""A message of a chat, as templates read it: `role`, `content`, and what else the template knows."""


class Render(Protocol):
    """The text of these messages, with or without the generation prompt after them."""

    def __call__(self, messages: Sequence[Message], /, *, prompt: bool = False) -> str: ...


SpecialEnd = Callable[[int], int | None]
"""Where the special token ends that begins at this character; None if none begins there."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_REMEDY = "Give the template a {% generation %} block around what the assistant says."
_TAGS = re.compile(r"(</?think>)")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the content of a message is.

    Attributes:
        marked: the chat with marks for the contents of this message and of the one before, if not of all.
        other: the mark of the one before.
        mark: that of this one.
        start: the first character of the content.
        stop: the one after its last.
        gap: what the template writes between the contents of both; None if it does not write that of the one before.
    """

    marked: Sequence[Message]
    other: str
    mark: str
    start: int
    stop: int
    gap: str | None


def find_turns(
    render: Render, messages: Sequence[Message], text: str, turns: Sequence[int], special_end: SpecialEnd
) -> list[tuple[int, int]]:
    """For each of `turns`, which are indices of messages, its first character in `text` and the one after its last.

    Args:
        text: `render(messages)`.

    Raises:
        ValueError: if a turn cannot be told from the rest; what `render` raises.
    """
    spans: list[tuple[int, int]] = []
    places: Sequence[_Place] | None = None
    for turn in turns:
        # Once a turn depends on what follows it, the next ones do mostly, too.
        if places is None and (span := _added(render, messages, text, turn)):
            spans.append(span)
            continue
        places = places if places is not None else _align(render, messages, text)
        place = places[turn] if places else _look(render, messages, text, turn)
        spans.append(_with_borders(render, place, text, turn, special_end))
    return spans


def _added(render: Render, messages: Sequence[Message], text: str, turn: int) -> tuple[int, int] | None:
    """The turn as what it adds to the messages before it; None if these are not rendered as in `text`."""
    if turn == 0:
        return None
    before = render(messages[:turn], prompt=True)
    if not text.startswith(before):
        return None
    through = text if turn == len(messages) - 1 else render(messages[: turn + 1])
    if not (text.startswith(through) and through.startswith(before)):
        return None
    return len(before), len(through)


def _align(render: Render, messages: Sequence[Message], text: str) -> Sequence[_Place]:
    """The place of every message, if what the template writes around contents is in `text` at one place each; else
    none. It takes one rendering, with marks for all contents."""
    word = _unheard_of(text)
    marks = [f"{word}{i}z" for i in range(len(messages))]
    marked = [_with(message, mark) for message, mark in zip(messages, marks, strict=True)]
    rest, gaps = render(marked), []
    for mark in marks:
        gaps.append(rest.partition(mark)[0])
        if mark not in rest:
            return ()
        rest = rest.rpartition(mark)[2]
    first, end = len(gaps[0]), len(text) - len(rest)
    if not (text.startswith(gaps[0]) and text.endswith(rest) and first <= end):
        return ()
    lefts, rights = [0], [end]
    for gap in gaps[1:]:
        lefts.append(text.find(gap, lefts[-1] + len(gaps[len(lefts) - 1]), end))
        if lefts[-1] < 0:
            return ()
    for gap in reversed(gaps[1:]):
        rights.append(text.rfind(gap, first, rights[-1]))
    starts, stops = [left + len(gap) for left, gap in zip(lefts, gaps, strict=True)], rights[::-1]
    if lefts[1:] != stops[:-1]:
        return ()
    return [_Place(marked, *place) for place in zip(["", *marks[:-1]], marks, starts, stops, gaps, strict=True)]


def _look(render: Render, messages: Sequence[Message], text: str, turn: int) -> _Place:
    """The place of one message, which alone is changed, and then with the one before it."""
    word = _unheard_of(text)
    mark, other = f"{word}1z", f"{word}2z"
    alone = [*messages[:turn], _with(messages[turn], mark), *messages[turn + 1 :]]
    pieces = render(alone).split(mark)
    head, tail = pieces[0], pieces[-1]
    if not (len(pieces) > 1 and text.startswith(head) and text.endswith(tail) and len(head) + len(tail) <= len(text)):
        raise ValueError(_differs(turn, text, head, tail, written=len(pieces) > 1))
    start, stop = len(head), len(text) - len(tail)
    if turn == 0:
        return _Place(alone, "", mark, start, stop, head)
    both = [*alone[: turn - 1], _with(alone[turn - 1], other), *alone[turn:]]
    gap = render(both).partition(mark)[0].rpartition(other)
    return _Place(both, other, mark, start, stop, gap[2] if gap[1] else None)


def _with_borders(render: Render, place: _Place, text: str, turn: int, special_end: SpecialEnd) -> tuple[int, int]:
    """The turn whose content has this place: with what the template writes of it before and after."""
    if turn == 0:
        alone = place.marked[:1]
        prompt = render(alone, prompt=True).removeprefix(render(alone))
        given = ""
        opened = len(text[: place.start].rpartition(prompt)[2]) if prompt and prompt in text[: place.start] else 0
    else:
        before = render(place.marked[:turn], prompt=True)
        if place.gap is None or place.other not in before:
            raise ValueError(
                f"message {turn}: cannot tell where it begins: the template does not write the content of the message "
                f"before it. {_REMEDY}"
            )
        given = before.rpartition(place.other)[2]
        opened = len(place.gap) - count_shared(place.gap, given)
    if turn == len(place.marked) - 1:
        return place.start - opened, len(text)
    ending = render(place.marked[: turn + 1]).rpartition(place.mark)[2]
    return place.start - opened, _closed(text, place.stop, ending, given, turn, special_end)


def _closed(text: str, stop: int, ending: str, given: str, turn: int, special_end: SpecialEnd) -> int:  # noqa: PLR0917
    """Where the turn ends of which the content ends at `stop`. Were it the last, the template would then write
    `ending`; after the message before it, it writes `given`."""
    at = stop + count_shared(text[stop : stop + len(ending)], ending)
    special = stop
    for token in range(stop, at):
        if (after := special_end(token)) is not None:
            if len(text[:after].rstrip()) > at:
                # Two special tokens that begin alike.
                at = token
                break
            special = after
    ended = special > stop and not text[special:at].strip()
    if ended or not ending[at - stop :].strip():
        return at
    # The last turn may end with a token of its own; the others then end as those of the user do.
    after = special_end(at)
    if after is not None and given.startswith(text[at:after]):
        return after
    raise ValueError(
        f"message {turn}: cannot tell where it ends: were it the last, the template would end it with {ending!r}, but "
        f"here goes on with {text[stop : stop + 40]!r}. {_REMEDY}"
    )


def count_shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many elements both begin with.

    >>> count_shared("<|end|>", "<|eot|>")
    3
    """
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _with(message: Message, mark: str) -> Message:
    """The message with `mark` for everything in it that is content, and of the same structure."""
    changed: dict[str, Any] = {key: mark for key in THOUGHTS if message.get(key)}
    content, calls = message.get("content"), message.get("tool_calls") or []
    if isinstance(content, str) and content.strip():
        # Thinking within the content keeps its tags, as templates part the content there.
        parts = _TAGS.split(content)
        marked = "".join(part if i % 2 or not part.strip() else mark for i, part in enumerate(parts))
        changed["content"] = marked if mark in marked else mark
    elif content and not isinstance(content, str):
        changed["content"] = [{**part, "text": mark} if part.get("text") else part for part in content]
    if any(_function(call).get("arguments") for call in calls):
        changed["tool_calls"] = [_called(call, "arguments", mark) for call in calls]
    if changed:
        return {**message, **changed}
    # Names come last: a template may look up a result by the name of the call.
    return {
        **message,
        **({"tool_calls": [_called(call, "name", mark) for call in calls]} if calls else {"content": mark}),
    }


def _function(call: Mapping[str, Any]) -> Mapping[str, Any]:
    return call.get("function", call)


def _called(call: Mapping[str, Any], key: Literal["name", "arguments"], mark: str) -> Mapping[str, Any]:
    """The call with `mark` for its name, or for the name of its first argument: values keep their types, as quotes may
    depend on them."""
    function = _function(call)
    if value := function.get(key):
        changed = (
            mark if isinstance(value, str) else {mark if i == 0 else k: v for i, (k, v) in enumerate(value.items())}
        )
        function = {**function, key: changed}
    return {**call, "function": function} if "function" in call else function


def _unheard_of(text: str) -> str:
    """A word that is not in `text`."""
    word = "mark"
    while word in text:
        word += "q"
    return word


def _differs(turn: int, text: str, head: str, tail: str, *, written: bool) -> str:
    """The complaint that a turn cannot be found."""
    if not written:
        return f"message {turn}: the template does not write its content, so what to learn of it is unknown. {_REMEDY}"
    at = count_shared(text, head)
    if at < len(head):
        here, there = text[at : at + 40], head[at : at + 40]
    else:
        at = count_shared(text[::-1], tail[::-1])
        here, there = text[: len(text) - at][-40:], tail[: len(tail) - at][-40:]
    return (
        f"message {turn}: cannot be told from the rest: with another content of it, the template also writes "
        f"{there!r} instead of {here!r}. {_REMEDY}"
    )
