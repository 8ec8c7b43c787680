"""A rank that does not come on is found, named and ended with all others. Effects: a thread, the store, the process.

The loop calls `beat` once a step. On a rank whose last beat is too long ago a thread says so in the store of the world,
with the place where the rank stands, and hears what the others say. A rank in a collective waits for others; one that
stands elsewhere, is steps behind, or does not answer at all is what they wait for. Then every rank prints the stacks of
its threads and ends.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Final

import torch.distributed as dist

from omni_mesh.world import World

STALLED: Final = 75
"""The code that a rank exits with, "temporary failure" of sysexits.h: it is worth starting again."""
_LOOK_S: Final = 0.2
_ANSWER_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a rank stands."""

    step: int
    waits: bool
    """For other ranks: it is in a collective."""
    where: str
    """File, line and function of the innermost frame that is not torch's."""


class Watchdog:
    """Of one rank: what its loop tells, and how long it may be silent."""

    def __init__(self, world: World, limit_s: float) -> None:
        self.world, self.limit_s = world, limit_s
        self.step, self.last = 0, time.monotonic()
        self.main = threading.get_ident()

    def beat(self, step: int) -> None:
        """Say that `step` is about to begin."""
        self.step, self.last = step, time.monotonic()

    @contextmanager
    def allowing(self, limit_s: float) -> Iterator[None]:
        """While open, silence is allowed for `limit_s` seconds if that is longer; afterwards it counts anew."""
        kept, self.limit_s = self.limit_s, max(self.limit_s, limit_s)
        self.last = time.monotonic()
        try:
            yield
        finally:
            self.limit_s, self.last = kept, time.monotonic()

    def is_late(self) -> bool:
        """Whether the last beat is longer ago than is allowed."""
        return time.monotonic() - self.last > self.limit_s

    def standing(self) -> Standing:
        """Where the thread that made this stands."""
        frames = traceback.extract_stack(sys._current_frames()[self.main])
        waits = any("torch/distributed" in frame.filename for frame in frames)
        own = [frame for frame in frames if "torch/" not in frame.filename] or frames
        return Standing(self.step, waits, f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}")


@contextmanager
def watch_stalls(world: World, limit_s: float) -> Iterator[Watchdog]:
    """While open, a rank without a `beat` for `limit_s` seconds ends all ranks with code `STALLED`.

    What is said on stderr: which rank is to blame and where it stands, by the lowest rank that answers, and the stacks
    of its threads by every rank. Collectives should wait longer than that, or they fail first and know less.
    """
    dog, done = Watchdog(world, limit_s), threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_S):
            if dog.is_late():
                give_up(dog)

    thread = threading.Thread(target=look, name="omni-watchdog", daemon=True)
    thread.start()
    try:
        yield dog
    finally:
        done.set()
        thread.join()


def give_up(dog: Watchdog) -> None:
    """Tell who is to blame, and where this rank stands, and end the process. Effect: all of it."""
    # Before anything else: when another rank has ended, what waited for it fails, and the place is lost.
    heard, stacks = {dog.world.rank: dog.standing()}, tell_stacks()
    asking = threading.Thread(target=_exchange, args=(dog.world, heard), daemon=True)
    asking.start()
    asking.join(2 * _ANSWER_S)
    if min(heard) == dog.world.rank:
        print(blame(dict(heard), dog.world.size, dog.limit_s), file=sys.stderr, flush=True)
    print(f"Rank {dog.world.rank} stands here:\n{stacks}", file=sys.stderr, flush=True)
    os._exit(STALLED)


def tell_stacks() -> str:
    """The stacks of all threads of this process but the one that asks. Effect: looks at them."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = {ident: frame for ident, frame in sys._current_frames().items() if ident != threading.get_ident()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in frames.items()
    )


def blame(heard: Mapping[int, Standing], size: int, limit_s: float) -> str:
    """Which of `size` ranks is to blame, from where those that answered stand. Pure."""
    silent = [rank for rank in range(size) if rank not in heard]
    behind = [rank for rank, at in heard.items() if at.step < max(each.step for each in heard.values())]
    elsewhere = [rank for rank, at in heard.items() if not at.waits]
    told = f"No step for {limit_s:g} seconds. "
    if silent:
        names = ", ".join(map(str, silent[:8]))
        return f"{told}To blame: rank {names} of {size}, which does not answer: it is stopped, dead or cut off."
    guilty = behind or (elsewhere if len(elsewhere) < size else [])
    if not guilty:
        places = sorted({f"step {at.step}, {at.where}" for at in heard.values()})
        return f"{told}All {size} ranks stand at the same place: {places[0]}."
    lines = [f"rank {rank} of {size}, at step {heard[rank].step}, {heard[rank].where}" for rank in guilty[:8]]
    return f"{told}To blame: {'; '.join(lines)}. The others wait for it."


def _exchange(world: World, heard: dict[int, Standing]) -> None:
    """Say where this rank stands, and hear the others. It may never return: the store can be what hangs."""
    # torch has no public way to the store of the world. It is one for each start of the ranks.
    store = dist.PrefixStore("omni-watchdog", dist.distributed_c10d._get_default_store())
    store.set(str(world.rank), json.dumps(asdict(heard[world.rank])))
    until = time.monotonic() + _ANSWER_S
    while len(heard) < world.size and time.monotonic() < until:
        for rank in range(world.size):
            if rank not in heard and store.check([str(rank)]):
                heard[rank] = Standing(**json.loads(store.get(str(rank))))
        time.sleep(_LOOK_S)
