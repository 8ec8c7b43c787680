"""Signals that a launcher hands on to the ranks it started. Effect: signal handlers."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from omni_mesh.signals import LEAVE, SAVE


class Relay:
    """What was handed on."""

    def __init__(self) -> None:
        self.told_to_leave = False

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        if number == LEAVE:
            self.told_to_leave = True
            # A second one is not waited for.
            signal.signal(LEAVE, _stop)
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, number)


class Stopped(BaseException):
    """The launcher was told to leave once more than it hands on."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


@contextmanager
def relay_signals() -> Iterator[Relay]:
    """While open, SIGTERM and SIGUSR1 to this process go on to its children, who may take their time to save and leave.

    A second SIGTERM raises `Stopped` here. For the main thread.
    """
    relay = Relay()
    before = {number: signal.signal(number, relay._hand_on) for number in (LEAVE, SAVE)}
    try:
        yield relay
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
