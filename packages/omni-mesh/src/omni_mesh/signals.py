"""Requests by signal: SIGTERM to save and leave, SIGUSR1 to save and go on. Effect: signal handlers, a thread.

A signal is only noted. The loop asks what was noted at a moment that suits it, tells the other ranks, and acts when all
of them know: the signal may have reached one of them only. It is a thread that notes, since a handler in Python does
not run while its thread waits in C++, as in a collective.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

LEAVE: Final = signal.SIGTERM
SAVE: Final = signal.SIGUSR1
SAME_S: Final = 5.0
"""Within so many seconds a repeated SIGTERM is the same one: schedulers signal all processes, and launchers hand on."""


class Requests:
    """What this process was asked for by signals, since they are heeded."""

    def __init__(self) -> None:
        self._leave_since: float | None = None
        self._save = False

    def take(self) -> tuple[bool, bool]:
        """Whether it was ever asked to leave, and whether it was asked to save since this was last called."""
        save, self._save = self._save, False
        return self._leave_since is not None, save

    def note(self, number: int) -> None:
        """Note a signal. Effect: ends the process if it is told to leave for the second time."""
        now = time.monotonic()
        self._save |= number == SAVE
        if number == LEAVE and self._leave_since is None:
            self._leave_since = now
        elif number == LEAVE and self._leave_since is not None and now - self._leave_since > SAME_S:
            os._exit(128 + LEAVE)


@contextmanager
def heed_signals() -> Iterator[Requests]:
    """While open, SIGTERM and SIGUSR1 do nothing but to be noted. For the main thread.

    A SIGTERM more than 5 seconds after the first ends the process, for whoever does not want to wait.
    """
    requests = Requests()
    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)

    def listen() -> None:
        while heard := os.read(ear, 1):
            requests.note(heard[0])

    thread = threading.Thread(target=listen, name="omni-signals", daemon=True)
    thread.start()
    before = {number: signal.signal(number, _stay) for number in (LEAVE, SAVE)}
    earlier = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(earlier)
        os.close(mouth)  # What the thread reads to its end.
        thread.join()
        os.close(ear)


def _stay(number: int, frame: FrameType | None) -> None:
    """A handler there must be, or the process would end; what was asked is read from the pipe."""
