"""What sources of data are called in metrics: short names, each of one source of a run."""

import re
from collections.abc import Sequence
from typing import Final

_ENDINGS: Final = re.compile(r"(\.(jsonl|json|parquet|arrow|tar|txt|md|gz|zst|bz2|xz))+$")


def short_names(names: Sequence[str]) -> list[str]:
    """For each name of a source, its last word, without what tells the kind of file; and words before it as far as
    another source has the same. A pattern is called as its folder is. Where that is not enough to tell them, the names
    themselves. Pure.

    >>> short_names(["data/en/web.jsonl.gz", "s3://bucket/code/*.parquet", "hf:allenai/c4:en@train"])
    ['web', 'code', 'c4:en@train']
    >>> short_names(["en/web/", "de/web/", "math.jsonl", "math.txt"])
    ['en/web', 'de/web', 'math.jsonl', 'math.txt']
    """
    words = [_words(name) for name in names]
    short = [
        next((called for k in range(1, len(own) + 1) if _is_only(called := "/".join(own[-k:]), words, k)), name)
        for name, own in zip(names, words, strict=True)
    ]
    return short if len({*short}) == len(short) else [*names]


def _words(name: str) -> list[str]:
    """The folders of a name and what is in them, as far as that is not a pattern."""
    plain = [word for word in re.split(r"/+", _ENDINGS.sub("", name)) if word and not set("*?[") & set(word)]
    return plain or [name]


def _is_only(called: str, words: Sequence[Sequence[str]], count: int) -> bool:
    """Whether one name alone has these last words, so many."""
    return sum("/".join(own[-count:]) == called for own in words) == 1
