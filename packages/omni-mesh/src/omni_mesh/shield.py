"""What a launcher keeps from its terminal and from the ranks it starts. Effect: logging, signal masks, processes."""

import logging
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Final

from omni_mesh.signals import SAVE

# These say what a person did not ask (a pid was closed) or will be told anyway (a rank failed), once per process.
_CHATTY: Final = ("torch.distributed.elastic", "torch.multiprocessing.spawn")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the log of torch's launcher off the terminal. Its exceptions are not touched."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    before = [logger.propagate for logger in loggers]
    nowhere = logging.NullHandler()
    for logger in loggers:
        logger.addHandler(nowhere)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(nowhere)
            logger.propagate = propagate


@contextmanager
def shielded() -> Iterator[None]:
    """Start ranks deaf to Ctrl-C and SIGUSR1 until `_run_rank` opens their ears, and give back the signal handlers at
    the end.

    A rank spends seconds importing, when Ctrl-C would make it print a traceback and SIGUSR1 end it. A blocked signal is
    inherited, so it is blocked in the thread that starts them; another thread of ours stays open to receive it, and
    Python handles it in the main thread all the same.
    """
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)}
    done = threading.Event()
    ear = threading.Thread(target=done.wait, name="omni-ctrl-c", daemon=True)
    ear.start()
    resource_tracker.ensure_running()  # It unblocks Ctrl-C once it has started, so it must start before.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, SAVE})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        done.set()
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def no_child_left() -> Iterator[None]:
    """Kill what was started inside and still runs, as when a signal comes while the ranks are being started."""
    before = multiprocessing.active_children()
    try:
        yield
    finally:
        for child in set(multiprocessing.active_children()) - set(before):
            child.kill()
            child.join()
