"""Requests by signal: SIGTERM to save and leave, SIGUSR1 to save and go on. Effect: signal handlers.

A handler only takes note. The loop asks what was noted at a moment that suits it, tells the other ranks, and acts when
all of them know: the signal may have reached one of them only.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

LEAVE: Final = signal.SIGTERM
SAVE: Final = signal.SIGUSR1


class Requests:
    """What this process was asked for by signals, since they are heeded."""

    def __init__(self) -> None:
        self._leave = self._save = False

    def take(self) -> tuple[bool, bool]:
        """Whether it was ever asked to leave, and whether it was asked to save since this was last called."""
        asked, self._save = (self._leave, self._save), False
        return asked

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._leave |= number == LEAVE
        self._save |= number == SAVE


@contextmanager
def heed_signals() -> Iterator[Requests]:
    """While open, SIGTERM and SIGUSR1 do nothing but to be noted. For the main thread.

    A second SIGTERM ends the process, for whoever does not want to wait.
    """
    requests = Requests()

    def leave(number: int, frame: FrameType | None) -> None:
        requests._note(number, frame)
        signal.signal(LEAVE, signal.SIG_DFL)

    before = {LEAVE: signal.signal(LEAVE, leave), SAVE: signal.signal(SAVE, requests._note)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
