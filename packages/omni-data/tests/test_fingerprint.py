"""Laws of the fingerprint."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_data import Documents, fingerprint


@given(st.lists(st.text(max_size=5), max_size=50), st.lists(st.text(max_size=5), max_size=50))
def test_small_sources_have_one_fingerprint_only_if_they_are_equal(a: list[str], b: list[str]) -> None:
    assert (fingerprint(Documents("a", a)) == fingerprint(Documents("b", b))) == (a == b)


def test_order_and_size_of_a_large_source_show() -> None:
    documents = [f"document {i}" for i in range(10_000)]
    known = fingerprint(Documents("a", documents))
    assert fingerprint(Documents("a", documents[::-1])) != known
    assert fingerprint(Documents("a", documents[:-1])) != known


def test_text_and_tokens_differ() -> None:
    assert fingerprint(Documents("a", ["[1]"])) != fingerprint(Documents("a", [[1]]))


def test_only_a_few_documents_are_read() -> None:
    class Counting:
        name = "counting"
        read = 0

        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, i: int, /) -> str:
            self.read += 1
            return str(i)

    source = Counting()
    fingerprint(source)
    assert source.read == 64


def test_a_document_that_cannot_be_read_is_told() -> None:
    class Broken(list):
        name = "broken"

        def __getitem__(self, i: object, /) -> str:
            raise ValueError("d.jsonl:1:3: broken")

    with pytest.raises(ValueError, match=r"d\.jsonl:1:3"):
        fingerprint(Broken("ab"))
