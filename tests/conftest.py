"""The pool of ranks, shared by the tests of a file."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from ranks import Run, rank_pool

LONG = (
    *("test_trouble.py", "test_models.py", "test_parity.py", "test_data.py", "test_resume.py", "test_processes.py"),
    *("test_soak.py", "test_sft.py", "test_bench.py", "test_requests.py", "test_sequence.py", "test_encoders.py"),
)
"""Files that take longest: they come first, so that none of them is left alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first; tests of a GPU are skipped where there is none."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """`run(function, ranks, *args)`: what each of so many ranks returned."""
    with rank_pool() as run_on_ranks:

        def run_where_there_is_room(function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
            if torch.cuda.is_available() and ranks > torch.cuda.device_count():
                pytest.skip(f"needs {ranks} GPUs")
            return run_on_ranks(function, ranks, *args)

        yield run_where_there_is_room
