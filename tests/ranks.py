"""A warm pool of ranks: forks of a process that has imported what all of them need, which run one function after
another as a world.

`run(function, 2, *args)` calls `function(*args)` in two processes that look to it as if torchrun had started them, and
returns what each returned. A function is sent by name, so it lives at the top of a module.
"""

import multiprocessing as mp
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import SystemRandom
from typing import Any

Run = Callable[..., list[Any]]
TIMEOUT_S = 900
"""Of the longest run of a test on a machine that is busy with others."""
IMPORTED = [
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.debug",
    "transformers.models.qwen3.modeling_qwen3",
    *(
        f"{package}.{home}"
        for package in ("omni_ckpt", "omni_models", "omni_parallel")
        for home in import_module(package)._HOMES
    ),
    "training",
    "warm",
]
"""Modules that take long, and start nothing; the last freezes all objects there are then."""
MOST_THREADS = 300
"""Of a rank before another takes its place: gloo's stay when a world is left, and wake up all the time."""


@contextmanager
def rank_pool() -> Iterator[Run]:
    """A function that runs others on any number of warm ranks. Effect: processes, started at first use."""
    workers: list[tuple[mp.process.BaseProcess, Connection]] = []

    def close() -> None:
        for process, _ in workers:
            process.kill()
            process.join()
        workers.clear()

    def run(function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
        while len(workers) < ranks:
            ours, theirs = mp.Pipe()
            workers.append((start_warm(_work, theirs, daemon=True), ours))
        port = free_port()
        for rank, (_, pipe) in enumerate(workers[:ranks]):
            pipe.send((rank, ranks, port, function, args))
        waiting, results = {pipe: rank for rank, (_, pipe) in enumerate(workers[:ranks])}, {}
        threads: dict[int, int] = {}
        while waiting:
            ready = wait(list(waiting), timeout=TIMEOUT_S)
            failed = "no rank answered in time" if not ready else None
            for pipe in ready:
                rank = waiting.pop(pipe)  # pyright: ignore[reportArgumentType]
                try:
                    worked, value, threads[rank] = pipe.recv()  # pyright: ignore[reportAttributeAccessIssue]
                except EOFError:
                    process = workers[rank][0]
                    process.join(5)
                    worked, value = False, f"the process died with code {process.exitcode}"
                results[rank] = value
                failed = failed or (None if worked else f"rank {rank} of {ranks}: {value}")
            if failed:
                close()  # The others may hang in a collective; the next run starts afresh.
                raise AssertionError(failed)
        if max(threads.values()) > MOST_THREADS:
            close()
        return [results[rank] for rank in range(ranks)]

    try:
        yield run
    finally:
        close()


def start_warm(function: Callable[..., None], *args: Any, daemon: bool = False) -> mp.process.BaseProcess:
    """A process that runs `function(*args)` and has imported what takes long. Effect: starts it."""
    context = mp.get_context(_method())
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_without_path, args=(function, *args), daemon=daemon)
    with _shown_modules():
        process.start()
    return process


def _without_path(function: Callable[..., None], *args: Any) -> None:
    os.environ.pop("PYTHONPATH", None)
    function(*args)


@contextmanager
def _shown_modules() -> Iterator[None]:
    """Let the process that ranks are forked of find what this one can import, which Python 3.11 does not see to."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _work(pipe: Connection) -> None:
    """Run what comes through `pipe` until it closes."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # torch's compiler asks a tensor for its gradient, and hides what torch says to that only where it would be shown.
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
    # What the compiler of torch 2.11 says of its own code.
    warnings.filterwarnings("ignore", ".torch.jit.script_method. is deprecated")
    while True:
        try:
            rank, ranks, port, function, args = pipe.recv()
        except EOFError:
            return
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
        try:
            pipe.send((True, function(*args), _count_threads()))
        except BaseException:  # noqa: BLE001  Whatever it is, the test that asked has to hear of it.
            pipe.send((False, traceback.format_exc(), _count_threads()))


def _method() -> str:
    """How ranks are started: what has looked for a GPU cannot be forked."""
    import torch

    return "spawn" if torch.cuda.is_available() else "forkserver"


def _count_threads() -> int:
    """Of this process, where the system tells."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 0


def free_port() -> int:
    """A port that nobody is given by chance: on Linux those from 32768 on are, whoever connects."""
    for _ in range(100):
        port = SystemRandom().randrange(10_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("localhost", port))
            return port
    raise AssertionError("no port is free at localhost")
