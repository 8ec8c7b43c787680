"""The pool of ranks, shared by every test of a session."""

from collections.abc import Iterator

import pytest
from ranks import Run, rank_pool


@pytest.fixture(scope="session")
def run() -> Iterator[Run]:
    """`run(function, ranks, *args)`: what each of so many ranks returned."""
    with rank_pool() as run_on_ranks:
        yield run_on_ranks
