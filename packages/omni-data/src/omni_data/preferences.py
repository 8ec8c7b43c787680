"""Preference pairs: two answers to one prompt, the better and the worse. Pure.

Known are `prompt`, `chosen` and `rejected`, each a string or a list of messages, and `chosen` and `rejected` as whole
conversations, whose common beginning is then the prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from omni_data.chat import ChatTokenizer, render_chat
from omni_data.conversations import record_of, refuse_typos, said, tools_of, unlearnt
from omni_data.sample import Sample
from omni_data.turns import Message, count_shared


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt.

    Attributes:
        prompt: the messages before both.
        chosen: the messages of the better answer.
        rejected: those of the worse.
        tools: what the assistant may call, as JSON schemas; None if there are none.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] | None = None


def pair_of(record: object) -> Pair:
    """The preference pair that `record` holds. Answers that repeat the prompt are taken without it.

    >>> pair_of({"prompt": "Hi", "chosen": "Hello!", "rejected": "No."}).rejected
    ({'role': 'assistant', 'content': 'No.'},)

    Raises:
        ValueError: if the record has no such fields, or they hold no prompt, or the answers are the same.
    """
    record = record_of(record)
    known = ("prompt", "chosen", "rejected", "tools")
    refuse_typos(record, known)
    if missing := [key for key in ("chosen", "rejected") if key not in record]:
        found = ", ".join(map(repr, record)) or "none"
        raise ValueError(f"no preference pair: fields are {found}; missing are {', '.join(map(repr, missing))}.")
    answers = [said(record, key, "assistant") for key in ("chosen", "rejected")]
    if "prompt" in record:
        prompt = said(record, "prompt", "user")
        if all(answer[: len(prompt)] == prompt for answer in answers):
            answers = [answer[len(prompt) :] for answer in answers]
    elif isinstance(record["chosen"], str) or isinstance(record["rejected"], str):
        raise ValueError("no preference pair: answers that are strings need a field 'prompt'; there is none.")
    else:
        shared = count_shared(*answers)
        prompt, answers = answers[0][:shared], [answer[shared:] for answer in answers]
        if not prompt:
            raise ValueError("no preference pair: chosen and rejected have no first message in common, so no prompt.")
    for key, answer in zip(("chosen", "rejected"), answers, strict=True):
        if not any(message["role"] == "assistant" for message in answer):
            raise ValueError(f"no preference pair: after the prompt, {key!r} has no message of the assistant.")
    if answers[0] == answers[1]:
        raise ValueError("no preference pair: chosen and rejected are the same.")
    return Pair(tuple(prompt), tuple(answers[0]), tuple(answers[1]), tools_of(record))


def render_pair(
    pair: Pair, tokenizer: ChatTokenizer, *, template_kwargs: Mapping[str, Any] | None = None
) -> tuple[Sample, Sample]:
    """The chosen and the rejected sample: the same tokens up to the answers, which alone are learnt.

    Raises:
        ValueError: as `render_chat`; if the template writes the prompt differently before the two answers.
    """
    prompt = unlearnt(pair.prompt)
    samples = tuple(
        render_chat([*prompt, *answer], tokenizer, tools=pair.tools, template_kwargs=template_kwargs)
        for answer in (pair.chosen, pair.rejected)
    )
    chosen, rejected = samples
    # A token across the border of prompt and answer is the answer's, and may be of only one of them.
    size = min(_first_learnt(chosen), _first_learnt(rejected))
    if not np.array_equal(chosen.tokens_N[:size], rejected.tokens_N[:size]):
        same = int(np.argmin(chosen.tokens_N[:size] == rejected.tokens_N[:size]))
        raise ValueError(
            f"the template writes the prompt differently before the two answers: of its {size} tokens, the one at "
            f"{same} is {tokenizer.decode([chosen.tokens_N[same]])!r} before the chosen answer, and "
            f"{tokenizer.decode([rejected.tokens_N[same]])!r} before the rejected."
        )
    return chosen, rejected


def _first_learnt(sample: Sample) -> int:
    assert sample.learn_N is not None
    return int(np.argmax(sample.learn_N))
