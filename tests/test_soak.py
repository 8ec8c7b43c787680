"""The soak, in short: see `soak.py`."""

import pytest
import soak


@pytest.mark.thorough
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not() -> None:
    assert sum(soak.main(soak.Config(kills=5, seed=1))["ends"].values()) == 5
