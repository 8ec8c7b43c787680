"""Rows of random tokens for a model of 151,936, in the working directory: words/, a tokenizer, and words.jsonl, text.

uv run benchmarks/words.py
"""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TOKENS, ROWS, LENGTH = 151_936, 64, 8191

if __name__ == "__main__":
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(TOKENS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0").save_pretrained("words")
    random.seed(0)
    texts = (" ".join(f"w{random.randrange(1, TOKENS)}" for _ in range(LENGTH)) for _ in range(ROWS))
    Path("words.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
