"""The pool of ranks, shared by the tests of a file."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from ranks import Run, rank_pool

LONG = """
omni_composed faults experts parity models encoders sequence data resume omni processes launch order_of_all seed_omni
hosts trouble evaluate frozen meshes keeper streamed wheels bench style hf tiles fp8 watchdog compile profile recipes
plan startup workflow soak kills examples sft requests redact lora settings moments adapters adamw fused
"""
"""Files that take longest: they come first, so that none of them is left alone at the end."""


def pytest_configure() -> None:
    """One thread a process, of those too that tests start: many share the cores, and threads that wait, spin."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first; tests of a GPU are skipped where there is none."""
    place = {f"test_{name}.py": place for place, name in enumerate(LONG.split())}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """What is there before the first test is never garbage: runs need not look through it."""
    import hypothesis  # noqa: F401 (at the end pytest imports it; what trio gives it then would seem to be garbage)

    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the end all is garbage: what counts its objects then would call the frozen ones leaks."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def saves() -> Iterator[None]:
    """A run in this process may ignore SIGUSR1; what a later test starts must be able to heed it."""
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """`run(function, ranks, *args)`: what each of so many ranks returned."""
    with rank_pool() as run_on_ranks:

        def run_where_there_is_room(function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
            if torch.cuda.is_available() and ranks > torch.cuda.device_count():
                pytest.skip(f"needs {ranks} GPUs")
            return run_on_ranks(function, ranks, *args)

        yield run_where_there_is_room
