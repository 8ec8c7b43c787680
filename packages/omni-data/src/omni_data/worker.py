"""The other side of `workers`: a process that makes windows until nobody asks any more.

It leaves signals to the process that started it, which may want to finish what it is at before it ends.
"""

import pickle
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

from omni_data.cursor import Position
from omni_data.make import Making
from omni_data.window import Window


def serve(line: Connection) -> None:
    """Answer each question of `line` until it is closed. Effect: reads sources."""
    sys.path[:], order = line.recv()
    making: Making = pickle.loads(order)
    opened: dict[tuple[int, int], tuple[Position, Iterator[Window]]] = {}
    while True:
        number, shard, source, start, count = line.recv()
        at, windows = opened.pop((shard, source), (None, iter(())))
        if at != start:
            windows = making(shard, source, start)
        answer = _made(windows, count)
        if answer[0] == "windows" and answer[1]:
            opened[shard, source] = answer[1][-1].after, windows
        line.send((number, answer))


def _made(windows: Iterator[Window], count: int) -> tuple[str, Any]:
    """The next `count` windows, or what is wrong."""
    try:
        return "windows", list(islice(windows, count))
    except ValueError as problem:
        return "problem", str(problem)
    except BaseException:  # noqa: BLE001  # Whatever it is, it is told to the process that asked.
        return "failure", traceback.format_exc()


def main() -> None:
    """Effect: serves the line whose number is the first argument."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    with suppress(EOFError, OSError):
        serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
