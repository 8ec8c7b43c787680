"""Laws of values between processes: they arrive as they were, arrays can be written to, and are not pickled."""

import os
import threading
from multiprocessing import Pipe
from typing import Any

import numpy as np
import pytest

from omni_data.wire import LEAST, receive, send


def across(*values: Any) -> list[Any]:
    """What arrives of `values`, sent one after the other by another thread."""
    here, there = Pipe()
    with here, there:
        sender = threading.Thread(target=lambda: [send(there, value) for value in values])
        sender.start()
        found = [receive(here) for _ in values]
        sender.join()
    return found


@pytest.mark.parametrize("count", [0, 1, LEAST // 4 - 1, LEAST // 4, 1_000_000])
def test_arrays_of_any_size_arrive_and_can_be_written_to(count: int) -> None:
    array = np.arange(count, dtype=np.int32)
    (name, (found, again)), last = across(("windows", [array, array[: count // 2]]), "last")
    assert (name, last) == ("windows", "last")
    assert np.array_equal(found, array) and np.array_equal(again, array[: count // 2])
    assert (found.dtype, found.flags.writeable) == (np.int32, True)
    found += 1


def test_arrays_of_any_layout_arrive() -> None:
    array = np.arange(600_000, dtype=np.float32).reshape(1000, 600)
    given = [array.T, array[::2, ::3], array[5:], np.array(["a", "b"])]
    for found, wanted in zip(across(given)[0], given, strict=True):
        assert np.array_equal(found, wanted)


def test_who_waits_for_one_that_has_gone_is_told() -> None:
    here, there = Pipe()
    with here:
        there.send((b"", [LEAST]))
        os.write(there.fileno(), b"some of it")
        there.close()
        with pytest.raises(EOFError):
            receive(here)


def test_numbers_of_large_arrays_are_not_pickled() -> None:
    here, there = Pipe()
    array = np.ones(10_000_000, np.float32)
    with here, there:
        sender = threading.Thread(target=send, args=(there, [array, "small", array[:10]]))
        sender.start()
        whole, sizes = here.recv()
        assert len(whole) < 1000 and sizes == [array.nbytes]
        left = array.nbytes
        while left:
            left -= len(os.read(here.fileno(), left))
        sender.join()
