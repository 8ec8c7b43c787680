"""A law of the loop around steps: garbage waits for its step."""

import gc

from step import rare_collections


def test_garbage_waits_for_its_step() -> None:
    assert gc.isenabled()
    with rare_collections(every=3) as collect_at:
        assert not gc.isenabled()
        gc.collect()
        cycle: list[object] = []
        cycle.append(cycle)
        del cycle
        before = gc.get_stats()[2]["collections"]
        collect_at(1)
        assert gc.get_stats()[2]["collections"] == before
        collect_at(3)
        assert gc.get_stats()[2]["collections"] == before + 1
    assert gc.isenabled()
