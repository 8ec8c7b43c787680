"""What the records of a run are to it: documents here, and what others make of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from omni_data import (
    Encode,
    Source,
    Streamed,
    TextTokenizer,
    encode_document,
    open_source,
    read_tokenizer,
    stream_source,
)

STREAM = "stream:"
"""Before the name of a source that is read in place and in order, instead of counted and in any order."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the records of a run are to it: how a source of them is opened, and how one becomes tokens."""

    open: Callable[[str], Source[Any] | Streamed[Any]]
    """The source that a word of the command line names; after `stream:`, one that is read in place and in order."""
    read_tokenizer: Callable[[str], TextTokenizer]
    encoder: Callable[[TextTokenizer, int | None], Encode]
    """What makes a sample of an item, for a vocabulary of so many tokens."""
    told: Mapping[str, str] = field(default_factory=dict)
    """What fixes the tokens of an item beside the tokenizer."""
    media: bool = False
    """Whether samples may have media, which encoders of the model make features of."""
    shards: int = 240
    """Virtual shards, where a run does not say how many: each holds a window of samples in memory."""


def texts(name: str) -> Kind:
    """Documents in the field `name` of records."""

    def open_texts(spec: str) -> Source[Any] | Streamed[Any]:
        if spec.startswith(STREAM):
            return stream_source(spec.removeprefix(STREAM), field=name)
        return open_source(spec, field=name)

    def encoder(tokenizer: TextTokenizer, vocab_size: int | None) -> Encode:
        return partial(encode_document, tokenize=tokenizer.encode, eos_id=tokenizer.eos_id, vocab_size=vocab_size)

    return Kind(open_texts, read_tokenizer, encoder)
