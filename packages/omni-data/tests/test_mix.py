"""Laws of mixing."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_data import Documents, Part, parse_weight
from omni_data.mix import mix_problems, pick_part, weight_at

WEIGHTS = st.lists(st.floats(0.05, 1), min_size=2, max_size=6)


@given(WEIGHTS, st.integers(0, 10**12))
def test_shares_are_the_weights_within_two_percent_of_any_hundred_and_twenty_rows(weights, start):
    """That many rows of 8,192 tokens are a million."""
    for rows, most in ((120, 0.02), (1000, 0.004), (10_000, 0.0006)):
        counts = Counter(pick_part(row, weights) for row in range(start, start + rows))
        assert max(abs(counts[i] / rows - w / sum(weights)) for i, w in enumerate(weights)) < most


@given(WEIGHTS, st.integers(0, 5), st.integers(0, 10**9))
def test_a_source_without_weight_is_never_picked(weights, none, row):
    weights[none % len(weights)] = 0.0
    assert weights[pick_part(row, weights)] > 0


def test_a_schedule_is_linear_between_its_points_and_flat_outside():
    weight = parse_weight("1@100,0.5@200,0.5@300,0@300.5")
    assert [weight_at(weight, at) for at in (0, 100, 150, 200, 299, 300.25, 1e12)] == [1, 1, 0.75, 0.5, 0.5, 0.25, 0]


@pytest.mark.parametrize("text", ["a lot", "1@", "1@0;2@3", "@3"])
def test_what_is_no_weight_is_an_error(text):
    with pytest.raises(ValueError, match="a weight is a number, or a schedule of weight@tokens points"):
        parse_weight(text)


def test_all_problems_of_a_mix_are_told_at_once():
    one = Documents("one", ["a"])
    parts = [
        Part(one, weight=-1.0),
        Part(one, epochs=0),
        Part(Documents("none", [])),
        Part(Documents("late", ["a"]), weight=((5.0, 1.0), (5.0, 2.0))),
    ]
    assert mix_problems(parts) == [
        "none: the source has no documents.",
        "'one' is in the mix twice: give it once, with the sum of the weights.",
        "one: weight -1.0 must be numbers that are not negative.",
        "one: epochs=0 must be at least 1.",
        "late: the tokens of a schedule must increase, got ((5.0, 1.0), (5.0, 2.0)).",
    ]
    assert mix_problems([Part(one, weight=0.0)]) == ["no source has a weight above zero after 0 tokens."]
