"""Laws of what a run says of itself, and when it looks."""

import gc
from collections import deque

import pytest
import torch
from step import rare_collections
from watch import Done, read_done


def done(step: int, loss: float = 1.0) -> Done:
    return Done(step, {"loss": torch.tensor(loss)}, {}, lr=0.1, tokens=8 * step, waited=0.0, reach=8.0)


def test_steps_are_told_once_in_order_and_the_last_ones_later() -> None:
    waiting: deque[Done] = deque()
    told: list[int] = []
    for step in range(1, 6):
        waiting.append(done(step))
        told += [
            each.step for each, values in read_done(waiting, keep=1 if step != 3 else 0) if values == {"loss": 1.0}
        ]
        assert told == list(range(1, step + (step == 3)))
    assert [each.step for each, _ in read_done(waiting, keep=0)] == [5]
    assert not waiting


def test_a_number_that_is_none_is_told_with_its_step_and_before_any_later_one() -> None:
    waiting = deque([done(1), done(2, float("nan")), done(3)])
    told = read_done(waiting, keep=0)
    assert next(told)[0].step == 1
    with pytest.raises(FloatingPointError, match="at step 2 loss is nan"):
        next(told)


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
