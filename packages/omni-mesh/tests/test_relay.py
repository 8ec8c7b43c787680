"""Laws of Ctrl-C in a run: it is heard once, a second one that follows at once is the same, and none is the last."""

import signal
import threading
import time
import weakref

import pytest

from omni_mesh import launch, relay
from omni_mesh.relay import one_interrupt


@pytest.fixture(autouse=True)
def own_handler(monkeypatch):
    """Repeated within 0.2 seconds it is the same one, and afterwards Ctrl-C is again what it was."""
    monkeypatch.setattr(relay, "_AGAIN_S", 0.2)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(times=1):
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)


def test_without_one_nothing_is_changed():
    with one_interrupt():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_follows_at_once_is_the_same_also_after_the_end_and_what_comes_later_is_another():
    with pytest.raises(KeyboardInterrupt), one_interrupt():
        try:
            interrupt()
        finally:
            interrupt(5)
    interrupt()
    time.sleep(0.25)
    with pytest.raises(KeyboardInterrupt):
        interrupt()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_is_swallowed_is_not_the_last(capsys):
    class Any:
        pass

    def train(config):
        weakref.finalize(Any(), interrupt)  # Python prints what is raised there, and goes on.
        interrupt()
        time.sleep(0.25)
        interrupt()
        raise AssertionError("it goes on")

    with pytest.raises(SystemExit, match="130"):
        launch(train, None, ranks=1)
    assert capsys.readouterr().err.endswith("Interrupted: every rank has ended.\n")


def test_an_ending_that_takes_long_can_be_cut_short_and_the_next_run_be_interrupted():
    ended = []

    def train(config):
        try:
            interrupt()
        finally:
            time.sleep(0.25)
            interrupt()
            ended.append("in full")

    for _ in range(2):
        with pytest.raises(SystemExit, match="130"):
            launch(train, None, ranks=1)
        time.sleep(0.25)
    assert not ended


def test_another_thread_may_launch():
    done = []
    thread = threading.Thread(target=launch, args=(done.append, "here"), kwargs={"ranks": 1})
    thread.start()
    thread.join()
    assert done == ["here"]
