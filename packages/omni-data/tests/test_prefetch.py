"""Laws of working ahead."""

import threading
import time
from itertools import count, islice

import pytest

from omni_data import Cursor, prefetch


def numbers(stop=None, *, made=None):
    for n in count():
        if n == stop:
            return
        if made is not None:
            made.append(n)
        yield n, Cursor(n + 1)


def workers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("stop", [0, 1, 20])
def test_items_cursors_and_order_are_unchanged(depth, stop):
    assert list(prefetch(numbers(stop), depth)) == list(numbers(stop))
    assert not workers()


@pytest.mark.parametrize("depth", [1, 3])
def test_depth_items_are_made_ahead_and_no_more(depth):
    made = []
    ahead = prefetch(numbers(made=made), depth)
    list(islice(ahead, 4))
    deadline = time.monotonic() + 10
    while len(made) < 3 + depth and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    # The fourth item is still with the consumer, who has not asked to replace it.
    assert made == list(range(3 + depth + 1))[: 4 + depth]
    ahead.close()


def test_an_error_comes_at_its_item():
    def broken():
        yield from numbers(3)
        raise ValueError("line 4 is broken")

    ahead = prefetch(broken(), depth=2)
    assert list(islice(ahead, 3)) == list(numbers(3))
    with pytest.raises(ValueError, match="line 4 is broken"):
        next(ahead)
    assert not workers()


def test_closing_stops_the_thread():
    made = []
    ahead = prefetch(numbers(made=made), depth=2)
    next(ahead)
    assert len(workers()) == 1
    ahead.close()
    assert not workers()
    assert len(made) <= 4


def test_dropping_it_stops_the_thread():
    ahead = prefetch(numbers())
    next(ahead)
    del ahead
    assert not workers()


def test_the_stream_runs_in_another_thread():
    def where():
        while True:
            yield threading.current_thread().name, Cursor()

    ahead = prefetch(where())
    assert next(ahead)[0] != threading.current_thread().name
    ahead.close()


def test_no_depth_is_an_error_at_once():
    with pytest.raises(ValueError, match="depth=0 must be at least 1"):
        prefetch(numbers(), 0)
