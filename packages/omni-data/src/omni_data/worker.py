"""The other side of `workers`: a process that makes windows until nobody asks any more.

It leaves signals to the process that started it, which may want to finish what it is at before it ends.
"""

import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from omni_data.cursor import Position
from omni_data.make import Making
from omni_data.window import Window
from omni_data.wire import send
from omni_data.workers import LEFT_TO_STARTER


def serve(line: Connection) -> None:
    """Answer each question of `line` until it is closed. Effect: reads sources."""
    sys.path[:], order = line.recv()
    making: list[Making] = []
    opened: dict[tuple[int, int], tuple[Position, Iterator[Window]]] = {}

    def make(shard: int, source: int, start: Position, count: int) -> list[Window]:
        making.extend(() if making else (pickle.loads(order),))
        at, windows = opened.pop((shard, source), (None, iter(())))
        if at != start:
            windows = making[0](shard, source, start)
        made: list[Window] = []
        try:
            for window in islice(windows, count):
                made.append(window)  # What was made stays there if the next cannot be.
        except Exception as error:
            if not made:
                raise
            windows = _failing(error)
        if made:
            opened[shard, source] = made[-1].after, windows
        return made

    while True:
        number, *question = line.recv()
        send(line, (number, _told(make, *question)))


def _failing(error: Exception) -> Iterator[NoReturn]:
    """Nothing but this error, once it is asked for."""
    raise error
    yield


def _told(make: Callable[..., list[Window]], *question: Any) -> tuple[str, Any]:
    """What `make` gives, or what is wrong, and of which kind that is."""
    try:
        return "windows", make(*question)
    except ValueError as problem:
        return "problem", str(problem)
    except BaseException:  # noqa: BLE001  # Whatever it is, it is told to the process that asked.
        return "failure", traceback.format_exc()


def main() -> None:
    """Effect: serves the line whose number is the first argument."""
    for number in LEFT_TO_STARTER:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_STARTER)
    with suppress(EOFError, OSError):
        serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
