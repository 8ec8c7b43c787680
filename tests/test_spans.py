"""Laws of spans of time, against a count of each unit of time."""

import itertools

from hypothesis import given
from hypothesis import strategies as st
from spans import Span, length, overlap, subtract, union

SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8)


def units(spans: list[Span]) -> set[int]:
    return {unit for begin, end in spans for unit in range(int(begin), int(end))}


def check(spans: list[Span], wanted: set[int]) -> None:
    assert units(spans) == wanted
    assert length(spans) == len(wanted)
    assert all(begin < end for begin, end in spans)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(spans))


@given(SPANS)
def test_a_union_is_what_any_covers_without_touching(spans: list[Span]) -> None:
    check(union(spans), units(spans))


@given(SPANS, SPANS, SPANS)
def test_what_is_left_of_spans_is_what_no_other_covers(spans: list[Span], some: list[Span], more: list[Span]) -> None:
    check(subtract(spans, some, more), units(spans) - units(some) - units(more))
    check(subtract(spans), units(spans))


@given(SPANS, SPANS)
def test_an_overlap_is_what_both_cover(spans: list[Span], others: list[Span]) -> None:
    check(overlap(spans, others), units(spans) & units(others))
