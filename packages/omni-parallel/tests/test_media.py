"""Laws of the dealing of media: little more than the mean for anybody, and every feature where its token is."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from omni_parallel import Medium, Route, balance, route_media, take_turns

COSTS = st.lists(st.floats(0.0, 100.0), max_size=40)


@given(COSTS, st.integers(1, 9), st.randoms())
def test_nobody_has_more_than_a_largest_piece_beyond_the_mean(costs, ranks, random):
    homes = [random.randrange(ranks) for _ in costs]
    doers = balance(costs, homes, ranks)
    loads = [sum(c for c, doer in zip(costs, doers, strict=True) if doer == r) for r in range(ranks)]
    assert all(0 <= doer < ranks for doer in doers)
    assert max(loads) <= 1.02 * sum(costs) / ranks + max(costs, default=0.0) + 1e-9


def test_what_is_even_stays_where_it_is():
    assert balance([1.0] * 6, [0, 0, 1, 1, 2, 2], 3) == [0, 0, 1, 1, 2, 2]


def test_a_realistic_mix_is_even_to_a_tenth():
    """Rows of 32,768 tokens on 8 ranks: images of 16 to 64 patches a side, on some rows many and on some none."""
    random = np.random.default_rng(0)
    for _ in range(20):
        homes = np.repeat(np.arange(8), random.multinomial(8 * 38, random.dirichlet([0.5] * 8)))
        sides = random.integers(16, 65, (len(homes), 2))
        costs = (sides.prod(1) * (1.0 + sides.prod(1) / 4000)).tolist()
        doers = balance(costs, homes.tolist(), 8)
        loads = np.bincount(doers, costs, 8)
        assert loads.max() / loads.mean() < 1.1
        assert np.bincount(homes, costs, 8).max() / loads.mean() > 1.5, "or there was nothing to even out"


def media(random, ranks, most, groups):
    """For each rank that reads rows, media whose features go to ranks of its group, in the order of their slices."""
    owned = [[] for _ in range(ranks)]
    for first in range(0, ranks, groups):
        for _ in range(random.randrange(most + 1)):
            takers = sorted(random.sample(range(first, first + groups), random.randint(1, groups)))
            counts = tuple((taker, random.randint(1, 5)) for taker in takers)
            owned[first].append(Medium((random.randint(1, 9), 1), float(random.randint(1, 50)), counts))
    return owned


def travel(owned, routes):
    """What every rank takes, each feature named by its medium and its place in it, as the collectives would move it."""
    ranks = range(len(owned))
    sent = [[(owner, i) for i in route.sends] for owner, route in enumerate(routes)]
    came = [[] for _ in ranks]
    for owner, route in enumerate(routes):
        left = iter(sent[owner])
        for to, count in enumerate(route.media_going):
            came[to] += [next(left) for _ in range(count)]
    made = [[(name, f) for name in names for f in range(owned[name[0]][name[1]].features)] for names in came]
    arrived = [[] for _ in ranks]
    for rank, route in enumerate(routes):
        picked = iter([made[rank][f] for f in route.made_F])
        for to, count in enumerate(route.going):
            arrived[to] += [next(picked) for _ in range(count)]
    return came, [[arrived[rank][g] for g in route.order_G] for rank, route in enumerate(routes)]


@given(st.randoms(use_true_random=False), st.sampled_from([(1, 1), (3, 1), (4, 2), (4, 4), (6, 3)]), st.integers(0, 7))
def test_every_feature_comes_once_to_the_rank_of_its_token_in_order(random, sizes, most):
    ranks, groups = sizes
    owned = media(random, ranks, most, groups)
    routes: list[Route] = [route_media(owned, rank) for rank in range(ranks)]
    came, taken = travel(owned, routes)
    for rank, route in enumerate(routes):
        assert [owned[owner][i] for owner, i in came[rank]] == list(route.encodes)
        assert list(route.media_coming) == [sum(owner == r for owner, _ in came[rank]) for r in range(ranks)]
        first = rank - rank % groups
        wanted = []
        for i, medium in enumerate(owned[first]):
            start = 0
            for taker, count in medium.takers:
                wanted += [((first, i), f) for f in range(start, start + count)] if taker == rank else []
                start += count
        assert taken[rank] == wanted
    names = [name for names in came for name in names]
    total = sum(map(len, owned))
    if total:
        # Towers are called by all ranks or none; only where there are too few media is one encoded twice.
        assert all(came) and len(set(names)) == total
        assert len(names) == total or len(names) <= ranks + total
    else:
        assert not names


def test_places_of_a_row_are_taken_by_the_ranks_of_its_slices():
    assert take_turns(np.arange(6, 17), 8, (4, 5, 6)) == [(4, 2), (5, 8), (6, 1)]
    assert take_turns([], 8, (4, 5, 6)) == []
