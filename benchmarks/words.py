"""Rows of random tokens: words/, a tokenizer of random words, and words.jsonl, its text, in the working directory.

uv run benchmarks/words.py
uv run benchmarks/words.py --rows 4000 --length 365 --sigma 1 --to packed.jsonl
"""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import tyro
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Config:
    """What to draw."""

    vocab_size: int = 151_936
    """Words, each a token; the first ends a document."""
    rows: int = 64
    """Documents."""
    length: int = 8191
    """Words of a document: the median, if `sigma` is not 0."""
    sigma: float = 0.0
    """Of the logarithm of lengths, which are then log-normal."""
    to: Path = Path("words.jsonl")
    """The file of the documents."""


def main(config: Config) -> None:
    """Effect: writes both."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(config.vocab_size)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0").save_pretrained("words")
    random.seed(0)
    lengths = [max(1, round(random.lognormvariate(math.log(config.length), config.sigma))) for _ in range(config.rows)]
    texts = (" ".join(f"w{random.randrange(1, config.vocab_size)}" for _ in range(length)) for length in lengths)
    config.to.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
