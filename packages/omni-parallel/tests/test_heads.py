"""Laws of dealing heads."""

from itertools import combinations_with_replacement, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_parallel.heads import deal_heads, repeated_heads, run_lengths, shared_heads

deals = st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(1, 9))


@given(deals)
def test_every_head_is_dealt_once_and_the_longest_run_is_as_short_as_can_be(deal: tuple[int, int, int]) -> None:
    shared, group, parts = deal
    runs = deal_heads(0, shared * group, group, parts)
    assert [head for run in runs for head in run] == list(range(shared * group))
    assert len(runs) == parts
    assert max(map(len, runs)) == -(-shared * group // parts)


@given(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)))
def test_no_deal_with_runs_as_short_copies_fewer_shared_heads(deal: tuple[int, int, int]) -> None:
    shared, group, parts = deal
    heads = shared * group
    longest = -(-heads // parts)

    def copies(cuts: tuple[int, ...]) -> int:
        return sum(len(shared_heads(range(a, b), group)) for a, b in pairwise(cuts))

    others = [
        copies((0, *cuts, heads))
        for cuts in combinations_with_replacement(range(heads + 1), parts - 1)
        if all(b - a <= longest for a, b in pairwise((0, *cuts, heads)))
    ]
    runs = deal_heads(0, heads, group, parts)
    assert copies((0, *(run.stop for run in runs))) == min(others)


@given(deals)
def test_repeated_heads_serve_equally_many_and_the_right_ones(deal: tuple[int, int, int]) -> None:
    shared, group, parts = deal
    for run in deal_heads(0, shared * group, group, parts):
        held = shared_heads(run, group)
        index = repeated_heads(run, group)
        laid = list(held) if index is None else [held[i] for i in index]
        if run:
            each, rest = divmod(len(run), len(laid))
            assert rest == 0
            assert [laid[i // each] for i in range(len(run))] == [head // group for head in run]
        assert sum(run_lengths(run, group)) == len(run)


@pytest.mark.parametrize(
    ("heads", "shared", "ranks", "sizes"),
    [
        (28, 4, 8, [4, 3, 4, 3, 4, 3, 4, 3]),
        (14, 2, 4, [4, 3, 4, 3]),
        (32, 8, 2, [16, 16]),
        (7, 1, 3, [3, 2, 2]),
    ],
)
def test_heads_of_known_models(heads: int, shared: int, ranks: int, sizes: list[int]) -> None:
    assert [len(run) for run in deal_heads(0, heads, heads // shared, ranks)] == sizes
