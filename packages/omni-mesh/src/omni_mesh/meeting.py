"""Ranks that start together find each other, in a store that may remember those that started before them.

torchrun keeps its store when it starts ranks again, and with it what the dead have left. How often it did cannot tell
the starts apart: one agent counts a failure of its ranks, another, which stopped healthy ranks for it, does not. So the
ranks ask each other. Rank 0 gives the start a name of its own, and every other rank calls by a word that nobody used
before: who is answered, is answered by a living rank 0, and a call of the dead is answered in vain.
"""

import time
from datetime import timedelta
from typing import Final
from uuid import uuid4

import torch.distributed as dist

_LOOK_S: Final = 0.01


def meet(store: dist.Store, rank: int, size: int, *, timeout_s: float) -> dist.Store:
    """A part of `store` that `size` ranks have to themselves, though other starts of them used it. Effect: collective.

    Raises `DistStoreError` after `timeout_s`, with the ranks that did not come.
    """
    store.set_timeout(timedelta(seconds=timeout_s))
    start = uuid4().hex
    try:
        if rank == 0:
            _answer(store, start, size, timeout_s)
        else:
            start = _call(store, rank)
    except dist.DistStoreError as error:
        absent = "0, which waits for all" if rank else _absent(store, start, size)
        raise dist.DistStoreError(f"rank {rank} of {size} waited {timeout_s:g} seconds for rank {absent}.") from error
    return dist.PrefixStore(f"start-{start}", store)


def _call(store: dist.Store, rank: int) -> str:
    """The name of the start, which rank 0 told this rank."""
    word = uuid4().hex
    store.set(f"call-{rank}", word)
    start = store.get(f"answer-{word}").decode()
    store.set(f"there-{start}-{rank}", "")
    return start


def _answer(store: dist.Store, start: str, size: int, timeout_s: float) -> None:
    """Tell `start` to every other rank, and return when all have heard.

    A rank may call after one that died was answered in its place, so those that call are looked for until then.
    """
    calls, heard = [f"call-{rank}" for rank in range(1, size)], [f"there-{start}-{rank}" for rank in range(1, size)]
    store.wait(calls)
    answered, until = set[bytes](), time.monotonic() + timeout_s
    while not store.check(heard):
        if time.monotonic() > until:
            raise dist.DistStoreError("not every rank has heard")
        for word in set(store.multi_get(calls)) - answered:
            store.set(f"answer-{word.decode()}", start)
            answered.add(word)
        time.sleep(_LOOK_S)


def _absent(store: dist.Store, start: str, size: int) -> str:
    """The ranks that never called; if all did, in this start or another, those that have not heard the answer."""
    silent = [rank for rank in range(1, size) if not store.check([f"call-{rank}"])]
    deaf = [rank for rank in range(1, size) if not store.check([f"there-{start}-{rank}"])]
    names = [str(rank) for rank in silent or deaf]
    return ", ".join(names[:8]) + " and more" * (len(names) > 8)
