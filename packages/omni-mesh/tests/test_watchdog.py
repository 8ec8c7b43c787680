"""Laws of stalls: the rank that others wait for is named, whatever it does, and all end soon."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from omni_mesh import World
from omni_mesh.watchdog import STALLED, Standing, Watchdog, blame

AT = "loop.py:3 in main"


@pytest.mark.parametrize(
    ("heard", "size", "words"),
    [
        (
            {0: Standing(7, True, AT), 1: Standing(7, False, "data.py:9 in read")},
            2,
            "To blame: rank 1 at step 7, data.py",
        ),
        ({0: Standing(7, True, AT), 1: Standing(6, True, AT)}, 2, "To blame: rank 1 at step 6, loop.py:3 in main"),
        ({0: Standing(7, True, AT), 2: Standing(7, True, AT)}, 3, "rank 1 of 3, which does not answer"),
        ({0: Standing(7, True, AT), 1: Standing(7, True, AT)}, 2, "No rank stands out: ranks 0, 1 at step 7, loop.py"),
        (
            {0: Standing(7, False, AT), 1: Standing(7, False, "data.py:9 in read")},
            2,
            "No rank stands out: rank 0 at step 7, loop.py:3 in main; rank 1 at step 7, data.py:9 in read.",
        ),
    ],
    ids=["elsewhere", "behind", "silent", "all wait", "none waits"],
)
def test_who_is_to_blame_is_told_from_where_ranks_stand(heard, size, words):
    told = blame(heard, size, 30)
    assert told.startswith("No step for 30 seconds. ")
    assert words in told


SCRIPT = """
import os, signal, sys, time
import torch, torch.distributed as dist
from omni_mesh import join_world, launch, watch_stalls

def read_data(how, dog):
    if how == "sleep":
        time.sleep(600)
    if how == "sleep as long as is allowed":
        with dog.allowing(600):
            time.sleep(600)
    os.kill(os.getpid(), signal.SIGSTOP)

def main(how):
    with join_world(device="cpu") as world, watch_stalls(world, 2.0) as dog:
        for step in range(100):
            dog.beat(step)
            if (step, world.rank) == (3, 1):
                read_data(how, dog)
            dist.all_reduce(torch.zeros(1))
            if step == 1:
                with dog.allowing(60):
                    time.sleep(3)
            time.sleep(0.05)

if __name__ == "__main__":
    launch(main, sys.argv[1], ranks=2)
"""
"""Simply a rank, where another has started it."""


def test_a_rank_of_launch_that_sleeps_is_named_and_the_run_ends(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, tmp_path / "script.py", "sleep"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=env, check=False)
    assert done.returncode == STALLED
    assert "No step for 2 seconds. To blame: rank 1 at step 3, " in done.stderr
    assert "in read_data. The others wait for it." in done.stderr


def test_of_a_save_in_the_background_its_thread_is_what_stands_somewhere():
    dog, begun, end = Watchdog(World(0, 0, 1, torch.device("cpu")), 1.0), threading.Event(), threading.Event()
    code = "def run(f): f()\ndef wait(thread): thread.join()\n"
    names: dict = {}
    exec(compile(code, "omni_ckpt/saving.py", "exec"), names)

    def write():
        begun.set()
        end.wait()

    thread = threading.Thread(target=names["run"], args=(write,), name="omni-save")
    thread.start()
    begun.wait()
    told = []

    def look():
        time.sleep(0.2)
        told.append(dog.standing())
        end.set()

    other = threading.Thread(target=look)
    other.start()
    names["wait"](thread)
    other.join()
    assert not told[0].waits
    assert told[0].where.endswith("in wait")  # Of the event, in `write`.


@pytest.mark.parametrize("how", ["sleep as long as is allowed", "stop"])
def test_a_rank_that_sleeps_or_stops_is_named_and_the_others_end(how, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, how],
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        began = time.monotonic()
        _, told = ranks[0].communicate(timeout=90)
        assert ranks[0].returncode == STALLED
        assert "Rank 0 stands here:" in told and "all_reduce" in told
        if how != "stop":
            assert "No step for 2 seconds. To blame: rank 1 at step 3, " in told
            assert "in read_data. The others wait for it." in told
            _, own = ranks[1].communicate(timeout=30)
            assert ranks[1].returncode == STALLED
            assert "Rank 1 stands here:" in own and "read_data" in own
        else:
            assert "To blame: rank 1 of 2, which does not answer" in told
            assert ranks[1].poll() is None
        assert time.monotonic() - began < 60
    finally:
        for process in ranks:
            process.send_signal(signal.SIGKILL)
            process.communicate()
