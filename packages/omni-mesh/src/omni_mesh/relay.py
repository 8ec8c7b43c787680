"""Signals that a launcher hands on to the ranks it started. Effect: signal handlers."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from omni_mesh.signals import LEAVE, SAME_S, SAVE

_AGAIN_S: Final = 2.0
"""After so many seconds a repeated Ctrl-C is another one: the first may have been lost, as in a finalizer, where Python
swallows what is raised; or what it began takes too long for whoever presses."""


class Relay:
    """What was handed on."""

    def __init__(self, told: Path) -> None:
        self.leave_since: float | None = None
        self.told = told
        """Is there once this process was told to leave, for ranks that are still being started."""

    @property
    def told_to_leave(self) -> bool:
        """Whether this process was."""
        return self.leave_since is not None

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        if number == LEAVE:
            now = time.monotonic()
            if self.leave_since is not None and now - self.leave_since > SAME_S:
                raise Stopped
            self.leave_since = self.leave_since or now
            self.told.touch()
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, number)


@contextmanager
def one_interrupt() -> Iterator[None]:
    """While open, Ctrl-C is a KeyboardInterrupt, and what comes within 2 seconds after it does nothing: who holds the
    keys down, or presses them twice, would else interrupt the ending. In other threads than the main one, and where
    Ctrl-C is handled otherwise than by Python's own handler, nothing is changed.

    Effect: the signal handler. After a Ctrl-C it stays, for what may come until the process has ended.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    last: float | None = None

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if last is None or now - last > _AGAIN_S:
            last = now
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if last is None:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class Stopped(BaseException):
    """The launcher was told to leave once more than it hands on."""


@contextmanager
def relay_signals(told: Path) -> Iterator[Relay]:
    """While open, SIGTERM and SIGUSR1 to this process go on to its children, who may take their time to save and leave.

    The file `told` is there after a SIGTERM: a child that is started later looks for it. A SIGTERM more than 5 seconds
    after the first raises `Stopped` here. For the main thread.
    """
    relay = Relay(told)
    before = {number: signal.signal(number, relay._hand_on) for number in (LEAVE, SAVE)}
    try:
        yield relay
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
