"""Laws of heeding signals: what this process was told is noted, what its children were told is theirs."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from omni_mesh import heed_signals, ignore_saves


def test_what_was_told_is_noted_once_and_handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with heed_signals() as requests:
        assert requests.take() == (False, False)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert until(lambda: requests.take() == (False, True))
        assert requests.take() == (False, False)
        os.kill(os.getpid(), signal.SIGTERM)
        assert until(lambda: requests.take()[0])
        assert requests.take() == (True, False), "to leave is for good"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before
    assert "omni-signals" not in [thread.name for thread in threading.enumerate()]


def test_saves_are_ignored_only_where_nothing_else_is_done_about_them():
    before = signal.getsignal(signal.SIGUSR1)
    try:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        ignore_saves()
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
        signal.signal(signal.SIGUSR1, signal.default_int_handler)
        ignore_saves()
        assert signal.getsignal(signal.SIGUSR1) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGUSR1, before)


CHILDREN = """
import os, signal, time
from omni_mesh import heed_signals

# What the runner of the tests ignores, this would, too.
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_DFL)

def fork():
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    return child

with heed_signals() as requests:
    told, kept = fork(), fork()
    os.kill(told, signal.SIGTERM)
    print("child ended by", os.WTERMSIG(os.waitpid(told, 0)[1]))
    print("heard", requests.take())
print("left")
os.kill(fork(), signal.SIGUSR1)
print("later child ended by", os.WTERMSIG(os.wait()[1]))
os.kill(kept, signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_ends_by_its_own_signals_and_is_not_waited_for():
    done = subprocess.run([sys.executable, "-c", CHILDREN], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.splitlines() == [
        f"child ended by {signal.SIGTERM:d}",
        "heard (False, False)",
        "left",
        f"later child ended by {signal.SIGUSR1:d}",
    ]


def until(is_so) -> bool:
    """Whether something became so within seconds."""
    end = time.monotonic() + 10
    while not (so := is_so()) and time.monotonic() < end:
        time.sleep(0.01)
    return so
