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
_END: Final = b"\0"
"""No signal has this number."""
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


def ignore_saves() -> None:
    """Let SIGUSR1, which would end this process, do nothing until it is heeded: there is nothing to save yet.

    Effect: a signal handler, if there is none. For the main thread; elsewhere nothing is done.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(SAVE) == signal.SIG_DFL:
        signal.signal(SAVE, signal.SIG_IGN)


@contextmanager
def heed_signals() -> Iterator[Requests]:
    """While open, SIGTERM and SIGUSR1 do nothing but to be noted. For the main thread.

    A SIGTERM more than 5 seconds after the first ends the process, for whoever does not want to wait. To a forked
    child signals do what they did before.
    """
    requests = Requests()
    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)

    def listen() -> None:
        while number := os.read(ear, 1)[0]:
            requests.note(number)

    thread = threading.Thread(target=listen, name="omni-signals", daemon=True)
    thread.start()
    before = {number: signal.signal(number, _stay) for number in (LEAVE, SAVE)}
    earlier = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    is_open = [True]

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(earlier)

    masks: dict[int, set[int | signal.Signals]] = {}

    def hold() -> None:
        # What comes while a child begins waits until its handlers are its own.
        if is_open[0]:
            masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, before)

    def release() -> None:
        if (mask := masks.pop(threading.get_ident(), None)) is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def restore_in_child() -> None:
        # It shares the pipe: what it is told, as to end by whoever started it, would be heard here.
        if is_open[0]:
            restore()
        release()

    os.register_at_fork(before=hold, after_in_parent=release, after_in_child=restore_in_child)
    try:
        yield requests
    finally:
        is_open[0] = False
        restore()
        # The thread is told to end, and not left to find the pipe closed: a child may hold it open.
        os.set_blocking(mouth, True)
        os.write(mouth, _END)
        thread.join()
        os.close(mouth)
        os.close(ear)


def _stay(number: int, frame: FrameType | None) -> None:
    """A handler there must be, or the process would end; what was asked is read from the pipe."""
