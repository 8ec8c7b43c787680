"""Names of sources in metrics."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sources import short_names

WORD = st.sampled_from(["a", "b", "web", "web.jsonl", "web.txt", "*.jsonl", "part-*", "s3:", "hf:a", ""])


@given(st.lists(st.lists(WORD, min_size=1, max_size=4).map("/".join).filter(len), min_size=1, max_size=6, unique=True))
def test_each_name_is_of_one_source_and_does_not_depend_on_their_order(names: list[str]) -> None:
    short = short_names(names)
    assert len({*short}) == len(names)
    assert short_names(names[::-1]) == short[::-1]
    assert all(len(called) <= len(name) for called, name in zip(short, names, strict=True))


@pytest.mark.parametrize("name", ["/data/en/web.jsonl", "web", "./web/", "/a/web/*.jsonl.gz", "s3://bucket/web.tar"])
def test_a_source_is_called_as_its_file_or_folder(name: str) -> None:
    assert short_names([name, "/data/code.txt"]) == ["web", "code"]
