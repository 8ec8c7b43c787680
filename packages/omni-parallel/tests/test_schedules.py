"""Laws of the schedules."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_parallel import constant, linear, warmup_cosine, warmup_stable_decay


def test_constant_never_changes() -> None:
    assert {constant(0.3)(step) for step in range(100)} == {0.3}


def test_linear_meets_both_ends_and_stays() -> None:
    schedule = linear(1.0, 3.0, 4)
    assert [schedule(step) for step in range(7)] == [1.0, 1.5, 2.0, 2.5, 3.0, 3.0, 3.0]


@given(warmup=st.integers(0, 20), rest=st.integers(1, 50), peak=st.floats(1e-6, 1.0), share=st.floats(0, 1))
def test_warmup_cosine_rises_to_its_peak_and_falls_to_its_end(
    warmup: int, rest: int, peak: float, share: float
) -> None:
    final, total = share * peak, warmup + rest
    schedule = warmup_cosine(peak, warmup, total, final=final)
    rates = [schedule(step) for step in range(total + 3)]
    assert max(rates) == pytest.approx(peak)
    assert rates[max(warmup - 1, 0)] == pytest.approx(peak)
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[warmup:]))
    assert rates[total:] == pytest.approx([final] * 3)


def test_warmup_cosine_is_half_way_in_the_middle() -> None:
    assert warmup_cosine(1.0, 0, 10)(5) == pytest.approx(0.5)
    assert warmup_cosine(1.0, 0, 4)(1) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_warmup_stable_decay_has_three_parts() -> None:
    schedule = warmup_stable_decay(1.0, 2, 4, 10, final=0.2)
    assert [round(schedule(step), 6) for step in range(12)] == [0.5, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2]


@pytest.mark.parametrize(("warmup", "total"), [(-1, 5), (5, 5), (9, 5)])
def test_a_warmup_outside_of_the_run_is_refused(warmup: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"warmup={warmup} steps .* total={total}"):
        warmup_cosine(1.0, warmup, total)
    with pytest.raises(ValueError, match=f"warmup={warmup} steps .* total={total}"):
        warmup_stable_decay(1.0, warmup, 0, total)


def test_phases_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="warmup=3 and decay=8 steps do not fit into total=10"):
        warmup_stable_decay(1.0, 3, 8, 10)
    with pytest.raises(ValueError, match="at least one step"):
        linear(0.0, 1.0, 0)
