"""Chats as the data of a run: the template they are written by, and which of their tokens are learnt."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from kinds import STREAM, Kind
from request_chats import ChatConfig
from transformers import AutoTokenizer

from omni_data import (
    Encode,
    Record,
    Source,
    Streamed,
    TextTokenizer,
    builtin_chats,
    encode_chat,
    open_records,
    read_tokenizer,
    stream_records,
)

TEMPLATE_FILE: Final = "chat_template.jinja"
PLAIN: Final = """\
{%- for message in messages %}
{{- message.role | capitalize }}: {% if message.role == 'assistant' -%}
{% generation %}{{ message.content + eos_token }}{% endgeneration %}
{%- else -%}
{{ message.content }}
{%- endif %}
{{- '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"""
"""Of tokenizers that have none."""
_CODE: Final = re.compile(r"\{[{%].*?[}%]\}", re.DOTALL)
_WORD: Final = re.compile(r"(?<![\w.'\"])[A-Za-z_]\w*")


def chats(config: ChatConfig) -> Kind:
    """Conversations in the records of a run.

    Raises:
        ValueError: if an option or the template cannot be meant.
    """
    options = parse_options(config.options)
    template = read_template(config.template) if config.template else None

    def encoder(tokenizer: TextTokenizer, vocab_size: int | None) -> Encode:
        fast = chat_tokenizer(tokenizer)
        check_options(options, fast.chat_template)
        return partial(encode_chat, tokenizer=fast, learn=config.learn, template_kwargs=options)

    told = {"chat": json.dumps([config.learn, options], sort_keys=True)}
    return Kind(open_chats, partial(read_chat_tokenizer, template=template), encoder, told)


def open_chats(spec: str) -> Source[Record] | Streamed[Record]:
    """The records that `spec` names; `builtin` needs no file. Effect: as `open_records`."""
    if spec.startswith(STREAM):
        return stream_records(spec.removeprefix(STREAM))
    return builtin_chats() if spec == "builtin" else open_records(spec)


def read_chat_tokenizer(name: str, *, template: str | None) -> TextTokenizer:
    """The tokenizer of that name, with `template` if it is not None. Effect: as `read_tokenizer`."""
    tokenizer = read_tokenizer(name)
    if template is None and has_template(tokenizer):
        return tokenizer
    if template is None:
        tokenizer = replace(tokenizer, name=f"{name} with a plain chat template, as it has none")
    return replace(tokenizer, files={**tokenizer.files, TEMPLATE_FILE: (template or PLAIN).encode()})


def has_template(tokenizer: TextTokenizer) -> bool:
    """Whether it comes with a chat template. Pure."""
    config = json.loads(tokenizer.files.get("tokenizer_config.json", b"{}"))
    return "chat_template" in config or any(name.startswith("chat_template") for name in tokenizer.files)


def chat_tokenizer(tokenizer: TextTokenizer) -> Any:
    """The same tokenizer as transformers has it, a `ChatTokenizer`.

    Raises:
        ValueError: if it has none that it can write.
    """
    with TemporaryDirectory() as folder:
        fast: Any = AutoTokenizer.from_pretrained(tokenizer.save(Path(folder)), trust_remote_code=False)
    if fast.eos_token is None and fast.chat_template == PLAIN:
        raise ValueError(
            f"tokenizer {tokenizer.name}, has no token that ends a text either: name a file with a chat template as "
            "--chat.template, or the tokenizer of a model that was trained on chats."
        )
    return fast


def check_options(options: Iterable[str], template: str | Mapping[str, str]) -> None:
    """Raises `ValueError` if the template, or any of several by name, does not mention one of `options`. Pure."""
    text = template if isinstance(template, str) else "\n".join(template.values())
    known = sorted({word for code in _CODE.findall(text) for word in _WORD.findall(code)})
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "look for its name there."
            raise ValueError(f"--chat.options {name}: the chat template has no such variable: {hint}")


def read_template(path: Path) -> str:
    """The template in a file. Effect: reads it. Raises `ValueError` if it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as problem:
        raise ValueError(f"--chat.template {path} cannot be read: {problem}.") from problem


def parse_options(options: Sequence[str]) -> Mapping[str, Any]:
    """Variables of a template, by name. Pure.

    >>> parse_options(["enable_thinking=false", "date=\\"today\\""])
    {'enable_thinking': False, 'date': 'today'}

    Raises:
        ValueError: if one is not name=value, or its value is not JSON.
    """
    parsed = {}
    for option in options:
        name, sign, value = option.partition("=")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            sign = ""
        if not (sign and name.isidentifier()):
            raise ValueError(
                f"--chat.options {option!r}: an option is name=value with a value in JSON, as enable_thinking=false or "
                'date="today".'
            )
    return parsed
