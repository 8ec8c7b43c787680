"""Values from one process to another, with the numbers of large arrays apart from all else (PEP 574).

A value that is pickled as a whole is copied under Python's lock, and the thread that trains waits for it: for the
pixels of a row of images a quarter of a second. What is apart is copied by the system, which needs no lock.
"""

import os
import pickle
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np

LEAST: Final = 1 << 16
"""Bytes of the smallest array that is worth a call of the system."""
MOST: Final = 1 << 30
"""Bytes of one call: some systems take no more than 2^31."""


def send(line: Connection, value: Any) -> None:
    """Effect: sends `value`, which pickles. Waits while the other side does not read."""
    apart: list[memoryview] = []

    def stays(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        large = view.nbytes >= LEAST
        if large:
            apart.append(view)
        return not large

    whole = pickle.dumps(value, protocol=5, buffer_callback=stays)
    line.send((whole, [view.nbytes for view in apart]))
    for view in apart:
        done = 0
        while done < view.nbytes:
            done += os.write(line.fileno(), view[done : done + MOST])


def receive(line: Connection) -> Any:
    """What was sent; arrays that were writable are. Effect: waits for it.

    Raises:
        EOFError: if the other side has gone.
    """
    whole, sizes = line.recv()
    apart = [np.empty(size, np.uint8) for size in sizes]
    for array in apart:
        view, done = memoryview(array), 0
        while done < array.nbytes:
            if not (read := os.readv(line.fileno(), [view[done : done + MOST]])):
                raise EOFError
            done += read
    return pickle.loads(whole, buffers=apart)
