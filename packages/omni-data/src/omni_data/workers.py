"""Windows made by other processes, in the order in which they are asked for. Effect: processes.

A virtual shard belongs to one worker of its rank, which keeps what it has open of it, and is asked for the next lot of
windows once half of what is there was taken. Lots begin small, or the start of a run, where every virtual shard is new,
would wait for rows that are of use much later. Who made a window cannot be told from it, so the order does not depend
on how many workers there are.

Workers are plain interpreters that run `omni_data.worker`: they import nothing of the program that starts them but what
the functions need that they are sent. (`multiprocessing` would import its main script in each, with torch and all; and
to fork a process with threads, or with a GPU, is asking for a deadlock.)
"""

import pickle
import select
import signal
import subprocess
import sys
from collections import deque
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from omni_data.cursor import Position
from omni_data.make import Making
from omni_data.window import Window
from omni_data.wire import receive

LOT = 8192
"""Tokens that a worker is asked for together, at most: so many that asking costs nothing beside making them."""
LEFT_TO_STARTER = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that do nothing to a worker."""
_LEAVE_S = 5.0


@dataclass(slots=True, eq=False)
class Worker:
    """A process, how to talk with it, and answers that came before they were waited for, by question."""

    process: subprocess.Popen[bytes]
    line: Connection
    early: dict[int, Any] = field(default_factory=dict)
    asked: int = 0

    def ask(self, question: tuple[Any, ...]) -> int:
        """The number of a question that the worker now has. Answers are heard while there is no room for it: the worker
        may be waiting for that."""
        self.asked += 1
        ready = select.poll()
        ready.register(self.line, select.POLLIN | select.POLLOUT)
        while not ready.poll()[0][1] & select.POLLOUT:
            self._hear()
        try:
            self.line.send((self.asked, *question))
        except OSError:
            self.lost()
        return self.asked

    def answer(self, number: int) -> Any:
        """The answer to that question. Effect: waits for it.

        Raises:
            ValueError: what the worker said is wrong with the data.
            RuntimeError: if it failed otherwise, or is no more.
        """
        while number not in self.early:
            self._hear()
        kind, answer = self.early.pop(number)
        if kind == "problem":
            raise ValueError(answer)
        if kind == "failure":
            raise RuntimeError(f"a data worker failed:\n{answer}")
        return answer

    def _hear(self) -> None:
        try:
            answered, answer = receive(self.line)
        except (EOFError, OSError):
            self.lost()
        except BaseException:
            self.line.close()  # What is left of the answer would be taken for the next.
            raise
        self.early[answered] = answer

    def lost(self) -> NoReturn:
        """Raises `RuntimeError`: the worker is no more."""
        try:
            code = self.process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"data worker {self.process.pid} does not answer, and has not ended.") from None
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        more = ": out of memory, often. Take fewer workers." if code == -9 else "."
        raise RuntimeError(f"data worker {self.process.pid} {how}{more}")


@dataclass(slots=True, eq=False)
class Lane:
    """The windows of a virtual shard and a source, by their numbers `which`, that one worker makes from `after` on."""

    worker: Worker
    which: tuple[int, int]
    most: int
    """Windows that are asked for together at most."""
    after: Position
    count: int = 1
    """Windows that the next question is for."""
    question: int | None = None
    here: deque[Window] = field(default_factory=deque)

    def __iter__(self) -> "Lane":
        return self

    def __next__(self) -> Window:
        """The next window. Effect: waits for it."""
        if not self.here:
            self._ask()
            assert self.question is not None
            self.here.extend(self.worker.answer(self.question))
            self.question = None
        if not self.here:
            raise StopIteration
        window = self.here.popleft()
        self.after = window.after
        return window

    def ahead(self) -> None:
        """Ask for the next windows, if no more are here. Effect: asks, and does not wait."""
        if not self.here:
            self._ask()

    def _ask(self) -> None:
        if self.question is None:
            self.question = self.worker.ask((*self.which, self.after, self.count))
            self.count = min(self.most, 2 * self.count)


@dataclass(frozen=True, slots=True, eq=False)
class Workers:
    """Some workers, which make windows for whoever calls."""

    workers: tuple[Worker, ...]
    lot: int
    """Windows that are asked for together at most."""
    ranks: int
    """The virtual shards of this rank are those of one remainder modulo this."""

    def __call__(self, shard: int, number: int, start: Position) -> "Lane":
        """The windows of virtual shard `shard` and source `number` from `start` on, the first of them asked for now."""
        lane = Lane(self.workers[shard // self.ranks % len(self.workers)], (shard, number), self.lot, start)
        lane.ahead()
        return lane

    def close(self) -> None:
        """Effect: ends the processes."""
        for worker in self.workers:
            worker.line.close()
        for worker in self.workers:
            try:
                worker.process.wait(_LEAVE_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


def start_workers(making: Making, count: int, *, ranks: int = 1) -> Workers:
    """So many processes that make what `making` does, for one of `ranks` ranks. Effect: starts them; `close` ends them,
    and so does the end of this process.

    Raises:
        ValueError: if what makes the windows cannot be sent to another process.
    """
    try:
        order = pickle.dumps(making)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"workers={count} need sources and functions that can be sent to other processes ({error}): make them of "
            "functions of a module, or take workers=0."
        ) from None
    lot = max(1, LOT // making.seq_len) if making.packing.how == "concat" else 1
    return Workers(tuple(_start(order) for _ in range(count)), lot, ranks)


def _start(order: bytes) -> Worker:
    here, there = Pipe()
    command = [sys.executable, "-m", "omni_data.worker", str(there.fileno())]
    # What is blocked here is blocked there, until the worker has said what it does about it.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_STARTER)
    try:
        process = subprocess.Popen(command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    there.close()
    worker = Worker(process, here)
    here.send((sys.path, order))
    return worker
