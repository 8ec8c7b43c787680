"""Laws of meeting: who starts together meets, whatever those before them left in the store, and nobody else does."""

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from omni_mesh.meeting import meet


def clients(count: int) -> list[dist.Store]:
    """As many ways to one store, the first of which holds it."""
    how = {"timeout": timedelta(seconds=20), "wait_for_workers": False}
    first = dist.TCPStore("localhost", 0, is_master=True, **how)
    return [first, *(dist.TCPStore("localhost", first.port, is_master=False, **how) for _ in range(count - 1))]


def say(store: dist.Store, rank: int, size: int, word: str, after: float = 0) -> list[str]:
    """What each rank said where this one met the others."""
    time.sleep(after)
    part = meet(store, rank, size, timeout_s=20)
    part.set(str(rank), word)
    return [part.get(str(other)).decode() for other in range(size)]


@pytest.mark.parametrize("late", [0, 1, 2], ids=lambda rank: f"rank {rank} is late")
def test_ranks_that_are_started_again_meet_each_other_and_not_the_dead(late: int) -> None:
    stores = clients(3)
    with ThreadPoolExecutor(3) as pool:
        for word in ("first", "second", "third"):
            told = pool.map(lambda rank, word=word: say(stores[rank], rank, 3, word, 0.3 * (rank == late)), range(3))
            assert list(told) == [[word] * 3] * 3


def test_a_rank_that_died_while_it_waited_is_not_waited_for() -> None:
    stores = clients(2)
    stores[0].set("call-1", "of one that died before it was answered")
    with ThreadPoolExecutor(2) as pool:
        told = pool.map(lambda rank: say(stores[rank], rank, 2, "again", 0.3 * rank), range(2))
        assert list(told) == [["again"] * 2] * 2


def test_more_or_fewer_ranks_may_be_started_again() -> None:
    stores = clients(4)
    with ThreadPoolExecutor(4) as pool:
        for size in (2, 4, 3, 1):
            told = pool.map(lambda rank, size=size: say(stores[rank], rank, size, str(size)), range(size))
            assert list(told) == [[str(size)] * size] * size


def test_who_did_not_come_is_named() -> None:
    stores = clients(2)
    stores[0].set("call-2", "of a start before this one")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(meet, stores[1], 1, 4, timeout_s=0.5)
        with pytest.raises(dist.DistStoreError, match=r"rank 0 of 4 waited 0\.5 seconds for rank 3\.$"):
            meet(stores[0], 0, 4, timeout_s=0.5)
        with pytest.raises(dist.DistStoreError, match=r"rank 1 of 4 waited 0\.5 seconds for rank 0, which waits for"):
            other.result()
    (store,) = clients(1)
    store.set("call-1", "of a start before this one")
    with pytest.raises(dist.DistStoreError, match=r"for rank 1\.$"):
        meet(store, 0, 2, timeout_s=0.2)


MAIN = """
import os, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from omni_mesh import join_world

agent, folder = sys.argv[1], Path(sys.argv[2])
with join_world(device="cpu", timeout_s=30) as world:
    once = folder / agent
    if not once.exists():
        dist.barrier()
        once.touch()
        if agent == "A":
            os._exit(1)
        time.sleep(600)  # Healthy: its agent stops it for the other's sake, and counts nothing.
    x = torch.ones(1)
    dist.all_reduce(x)
    print(f"met {agent} {x.item():g} count {os.environ['TORCHELASTIC_RESTART_COUNT']}", flush=True)
"""


@pytest.mark.thorough
def test_ranks_of_two_agents_of_torchrun_that_count_differently_meet_again(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    one = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "1", "--local-addr", "localhost"]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "x"]
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *one, *rendezvous, script, agent, tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env | {"OMP_NUM_THREADS": "1"},
        )
        for agent in "AB"
    ]
    try:
        told = [agent.communicate(timeout=200)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.terminate()  # Which ends its ranks, too.
            agent.wait()
    assert [agent.returncode for agent in agents] == [0, 0], told
    assert "met A 2 count 1" in told[0]
    assert "met B 2 count 0" in told[1]
