"""A rank that does not come on is found, named and ended with all others. Effects: a thread, the store, the process.

The loop calls `beat` once a step. On a rank whose last beat is too long ago a thread raises an alarm in the store of
the world, on which a thread of every rank says there where its loop stands. A rank in a collective waits for others;
one that stands elsewhere, is steps behind, or does not answer at all is what they wait for. Then every rank prints the
stacks of its threads and ends.
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
from types import FrameType
from typing import Final

import torch.distributed as dist

from omni_mesh.world import World

STALLED: Final = 75
"""The code that a rank exits with, "temporary failure" of sysexits.h: it is worth starting again."""
_LOOK_S: Final = 0.2
_LISTEN_S: Final = 1.0
_ANSWER_S: Final = 5.0
_ALARM: Final = "alarm"
_TOLD: Final = "told"
_WAITS_IN: Final = (
    *("torch/distributed/distributed_c10d", "torch/distributed/_functional_collectives", "torch/distributed/fsdp"),
    *("torch/cuda/streams", "omni_ckpt/saving"),
)
"""Files in which a rank waits for others, or for a GPU that does. Of torch's not all: its launcher is below each rank,
and its writer of checkpoints waits for the disk."""
_SAVER: Final = "omni-save"
"""The thread of a save in the background, by name; where the loop waits for it, it is that which stands somewhere."""


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
        now = sys._current_frames()
        frames = stack_of(now[self.main])
        savers = [thread.ident for thread in threading.enumerate() if thread.name == _SAVER and thread.ident in now]
        if savers and any("omni_ckpt/saving" in frame.filename for frame in frames):
            # It runs in a file of that name, too, below all that it does.
            frames = [at for at in stack_of(now[savers[0]]) if "omni_ckpt/saving" not in at.filename]
        waits = any(part in frame.filename for frame in frames for part in _WAITS_IN)
        own = [frame for frame in frames if "torch/" not in frame.filename] or frames
        return Standing(self.step, waits, f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}")


@contextmanager
def watch_stalls(world: World, limit_s: float) -> Iterator[Watchdog]:
    """While open, a rank without a `beat` for `limit_s` seconds ends all ranks with code `STALLED`.

    What is said on stderr: which rank is to blame and where it stands, by the lowest rank that answers, and the stacks
    of its threads by every rank. Collectives should wait longer than that, or they fail first and know less.
    """
    dog, done = Watchdog(world, limit_s), threading.Event()
    once = threading.Lock()

    def give_up_once() -> None:
        if once.acquire(blocking=False):
            give_up(dog)

    def look() -> None:
        while not done.wait(_LOOK_S):
            if dog.is_late():
                give_up_once()

    def listen() -> None:
        # In a thread of its own, since the store may be what hangs.
        store = _store()
        while not done.wait(_LISTEN_S):
            try:
                alarm = store.check([_ALARM])
            except RuntimeError:
                return  # The store is gone, with whoever held it, and so is the run.
            if alarm:
                give_up_once()

    threads = [threading.Thread(target=look, name="omni-watchdog", daemon=True)]
    if world.size > 1:
        threads.append(threading.Thread(target=listen, name="omni-watchdog-ear", daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield dog
    finally:
        done.set()
        for thread in threads:
            thread.join(_ANSWER_S)


def give_up(dog: Watchdog) -> None:
    """Tell who is to blame, and where this rank stands, and end the process. Effect: all of it."""
    # Whatever hangs on the way, a file system or the store, the process ends.
    timer = threading.Timer(5 * _ANSWER_S, os._exit, (STALLED,))
    timer.daemon = True
    timer.start()
    # Before anything else: when another rank has ended, what waited for it fails, and the place is lost.
    heard, stacks = {dog.world.rank: dog.standing()}, tell_stacks()
    asking = threading.Thread(target=_exchange, args=(dog.world, heard), daemon=True)
    asking.start()
    asking.join(2 * _ANSWER_S)
    first = min(heard) == dog.world.rank
    if first:
        print(blame(dict(heard), dog.world.size, dog.limit_s), file=sys.stderr, flush=True)
    print(f"Rank {dog.world.rank} stands here:\n{stacks}", file=sys.stderr, flush=True)
    # A launcher ends the others once one has ended, so the one that tells goes first.
    leaving = threading.Thread(target=_settle, args=(first,), daemon=True)
    leaving.start()
    leaving.join(2 * _ANSWER_S)
    os._exit(STALLED)


def stack_of(frame: FrameType) -> traceback.StackSummary:
    """The frames from the outermost to `frame`. No source is read, which may be on the file system that hangs."""
    return traceback.StackSummary.extract(reversed(list(traceback.walk_stack(frame))), lookup_lines=False)


def tell_stacks() -> str:
    """The stacks of all threads of this process but the one that asks. Effect: looks at them."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = {ident: frame for ident, frame in sys._current_frames().items() if ident != threading.get_ident()}
    return "\n".join(
        "\n".join(
            [
                f"thread {names.get(ident, ident)}:",
                *(f"  {at.filename}:{at.lineno} in {at.name}" for at in stack_of(frame)),
            ]
        )
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
    if guilty:
        return f"{told}To blame: {_places({rank: heard[rank] for rank in guilty})}. The others wait for it."
    return f"{told}No rank stands out: {_places(heard)}."


def _places(heard: Mapping[int, Standing]) -> str:
    """Each place, with the ranks that stand there. Pure."""
    ranks: dict[str, list[int]] = {}
    for rank, at in sorted(heard.items()):
        ranks.setdefault(f"at step {at.step}, {at.where}", []).append(rank)
    shown = [
        f"rank{'s' * (len(here) > 1)} {', '.join(map(str, here[:8]))}{' and more' * (len(here) > 8)} {place}"
        for place, here in ranks.items()
    ]
    return "; ".join(shown[:8])


def _store() -> dist.Store:
    # torch has no public way to the store of the world. It is one for each start of the ranks.
    return dist.PrefixStore("omni-watchdog", dist.distributed_c10d._get_default_store())


def _settle(first: bool) -> None:
    """Say that it is told who is to blame, or wait for that."""
    store = _store()
    if first:
        store.set(_TOLD, "")
        return
    until = time.monotonic() + _ANSWER_S
    while not store.check([_TOLD]) and time.monotonic() < until:
        time.sleep(_LOOK_S)


def _exchange(world: World, heard: dict[int, Standing]) -> None:
    """Say where this rank stands, and hear the others. It may never return: the store can be what hangs."""
    store = _store()
    store.set(_ALARM, "")
    store.set(str(world.rank), json.dumps(asdict(heard[world.rank])))
    until = time.monotonic() + _ANSWER_S
    while len(heard) < world.size and time.monotonic() < until:
        for rank in range(world.size):
            if rank not in heard and store.check([str(rank)]):
                heard[rank] = Standing(**json.loads(store.get(str(rank))))
        time.sleep(_LOOK_S)
