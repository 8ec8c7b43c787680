"""Laws of the shuffle."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_data import permute

SEEDS = st.tuples(st.integers(0, 2**63), st.integers(0, 1000))


@given(st.integers(1, 700), SEEDS)
def test_it_is_a_bijection(n, seed):
    assert sorted(permute(i, n, seed) for i in range(n)) == list(range(n))


@given(st.integers(1, 2**40), SEEDS, st.data())
def test_it_stays_in_range_where_no_list_could_be_held(n, seed, data):
    i = data.draw(st.integers(0, n - 1))
    assert 0 <= permute(i, n, seed) < n


def test_every_part_of_the_seed_matters():
    orders = {tuple(permute(i, 50, seed) for i in range(50)) for seed in [(0, 0), (0, 1), (1, 0), (1, 1), (0,), (1,)]}
    assert len(orders) == 6


@pytest.mark.parametrize("n", [2, 3, 5, 8, 13])
def test_an_item_goes_everywhere_equally_often(n):
    seeds = 4000
    for i in range(n):
        counts = Counter(permute(i, n, (seed, 7)) for seed in range(seeds))
        assert all(abs(counts[j] - seeds / n) < 6 * (seeds / n) ** 0.5 for j in range(n))


def test_neighbours_do_not_stay_neighbours():
    n = 1000
    order = [permute(i, n, (0, 0)) for i in range(n)]
    assert sum(abs(a - b) == 1 for a, b in pairwise(order)) < 10


def test_the_order_is_the_same_in_every_release():
    # A resumed run must find the order that it was stopped in.
    assert [permute(i, 10, (0, 0)) for i in range(10)] == [0, 3, 4, 2, 6, 5, 1, 8, 9, 7]


def test_outside_is_an_error():
    with pytest.raises(ValueError, match=r"i=5 is not in range\(5\)"):
        permute(5, 5, (0,))
