"""How long a run waits for a rank that does not come on: long for the first step, then as long as was asked for."""

from collections.abc import Callable
from typing import Final

from omni_mesh import Mesh, Watchdog, set_timeouts

START_S: Final = 1800.0
"""For starting, loading and the first step, in which kernels are compiled and connections made."""
MARGIN_S: Final = 60.0
"""That collectives wait longer than the watchdog, which knows more."""


def expect_steps(dog: Watchdog, mesh: Mesh, timeout_s: float) -> Callable[[int], None]:
    """What to call with each step before it begins. Effect of it: from the second on, `timeout_s` holds."""
    dog.limit_s = max(dog.limit_s, timeout_s)
    dog.beat(0)  # Loading is done: the first step has a time of its own.
    begun: list[int] = []

    def begin(step: int) -> None:
        dog.beat(step)
        begun.append(step)
        if len(begun) == 2:
            dog.limit_s = timeout_s
            set_timeouts([None, *mesh.groups()], timeout_s + MARGIN_S)

    return begin
