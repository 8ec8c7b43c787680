import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from storage import add_storage, requests

from omni_ckpt import as_place, claim, lease

HOLD = """
import sys, time
from pathlib import Path
from omni_ckpt import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""


def test_a_directory_is_claimed_once_and_free_when_the_process_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"is being written by process {holder.pid} of "), claim(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    for _ in range(2):
        with claim(tmp_path), pytest.raises(ValueError, match="two runs in one directory"), claim(tmp_path):
            pass


HOLD_STORAGE = """
import sys, time
from storage import add_storage
from omni_ckpt import as_place, claim
add_storage()
with claim(as_place(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "SETTLE_S", 0.05)
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    add_storage()
    return as_place(f"shelf://{tmp_path}/run")


def saved_lease(tmp_path):
    return json.loads((tmp_path / "run" / "run.lock").read_text())


def wait_for(holds, seconds=20.0):
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.02)
    assert holds()


def test_a_place_in_storage_is_claimed_once_and_free_when_it_is_left(root, tmp_path):
    threads = threading.active_count()
    for _ in range(2):
        with claim(root) as check:
            check()
            with (
                pytest.raises(ValueError, match=f"by process {os.getpid()} of .*two runs in one directory"),
                claim(root),
            ):
                pass
            check()
        assert not (tmp_path / "run" / "run.lock").exists()
        assert threading.active_count() == threads


def test_a_lease_of_a_process_of_this_machine_is_free_once_it_is_killed(root, tmp_path):
    path = os.pathsep.join(sys.path)
    ours = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", HOLD_STORAGE, str(root)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ours)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"is being written by process {holder.pid} of "), claim(root):
            pass
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    with claim(root):
        assert saved_lease(tmp_path)["process"] == os.getpid()


def test_a_lease_of_another_machine_is_free_after_so_long_without_renewal(root, tmp_path):
    (tmp_path / "run").mkdir()
    other = {"holder": "process 1 of far", "id": "a", "machine": "far", "process": 1}
    for age in (0.0, lease.GIVEN_UP_S - 10):
        (tmp_path / "run" / "run.lock").write_text(json.dumps(other | {"renewed": time.time() - age}))
        with pytest.raises(ValueError, match=r"process 1 of far \(seen \d+ s ago; given up after 120 s"), claim(root):
            pass
    (tmp_path / "run" / "run.lock").write_text(json.dumps(other | {"renewed": time.time() - lease.GIVEN_UP_S - 1}))
    with claim(root):
        pass


def test_a_lease_is_renewed_while_it_is_held_even_if_some_requests_fail(root, tmp_path):
    def fail(number, what, path):
        if number % 3 == 0:
            raise OSError(5, "Input/output error")

    with claim(root) as check:
        began = saved_lease(tmp_path)["renewed"]
        with requests(fail):
            wait_for(lambda: saved_lease(tmp_path)["renewed"] > began + 0.5)
        check()


def test_a_lease_that_was_lost_or_cannot_be_renewed_is_told(root, tmp_path, monkeypatch):
    file = tmp_path / "run" / "run.lock"
    with claim(root) as check:
        file.write_text(json.dumps(saved_lease(tmp_path) | {"id": "b", "holder": "process 2 of far"}))
        wait_for(
            lambda: threading.active_count() == 1 or not any(t.name == "omni-lease" for t in threading.enumerate())
        )
        with pytest.raises(ValueError, match="no longer this run's: process 2 of far"):
            check()
    assert saved_lease(tmp_path)["id"] == "b", "it is not ours to delete"
    file.unlink()

    def fail(number, what, path):
        raise OSError(5, "Input/output error")

    with claim(root) as check, requests(fail) as asked:
        wait_for(lambda: len(asked) > 3)
        check()
        monkeypatch.setattr(lease, "GIVEN_UP_S", 0.01)
        with pytest.raises(ValueError, match=r"was not renewed for .*Input/output error"):
            check()


def test_of_two_that_begin_at_once_one_has_it(root, monkeypatch):
    monkeypatch.setattr(lease, "SETTLE_S", 3.0)
    both, told, held = threading.Barrier(2), [], []

    def begin():
        both.wait()
        try:
            with claim(root):
                held.append(1)
                time.sleep(4)
        except ValueError as error:
            told.append(str(error))

    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(told)) == (1, 1)
    assert "two runs in one directory" in told[0]


@pytest.mark.parametrize("content", ["", "{", "[1]", "process 3 of here", '{"id": 1}'])
def test_what_is_no_lease_is_refused_by_name(content, root, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").write_text(content)
    with pytest.raises(ValueError, match=r"run\.lock is no lease of a run: delete it"), claim(root):
        pass


def test_a_storage_that_does_not_answer_is_an_error_of_the_claim(root):
    def fail(number, what, path):
        raise TimeoutError("no answer")

    with requests(fail), pytest.raises(OSError, match="no answer"), claim(root):
        pass
