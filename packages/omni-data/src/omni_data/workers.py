"""Windows made by other processes, in the order in which they are asked for. Effect: processes.

A virtual shard belongs to one worker, which keeps what it has open of it, and makes one lot of windows ahead of those
that were taken. Who made a window cannot be told from it, so the order does not depend on how many workers there are.

Workers are plain interpreters that run `omni_data.worker`: they import nothing of the program that starts them but what
the functions need that they are sent. (`multiprocessing` would import its main script in each, with torch and all; and
to fork a process with threads, or with a GPU, is asking for a deadlock.)
"""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from omni_data.cursor import Position
from omni_data.make import Making
from omni_data.window import WINDOW, Window

_LEAVE_S = 5.0


@dataclass(slots=True, eq=False)
class Worker:
    """A process, how to talk with it, and answers that came before they were waited for, by question."""

    process: subprocess.Popen[bytes]
    line: Connection
    early: dict[int, Any] = field(default_factory=dict)
    asked: int = 0

    def ask(self, question: tuple[Any, ...]) -> int:
        """The number of a question that the worker now has."""
        self.asked += 1
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
            try:
                answered, answer = self.line.recv()
            except (EOFError, OSError):
                self.lost()
            self.early[answered] = answer
        kind, answer = self.early.pop(number)
        if kind == "problem":
            raise ValueError(answer)
        if kind == "failure":
            raise RuntimeError(f"a data worker failed:\n{answer}")
        return answer

    def lost(self) -> NoReturn:
        """Raises `RuntimeError`: the worker is no more."""
        code = self.process.wait(_LEAVE_S)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        more = ": out of memory, often. Take fewer workers." if code == -9 else "."
        raise RuntimeError(f"data worker {self.process.pid} {how}{more}")


@dataclass(frozen=True, slots=True, eq=False)
class Workers:
    """Some workers, which make windows for whoever calls."""

    workers: tuple[Worker, ...]
    lot: int
    """Windows that are asked for together."""

    def __call__(self, shard: int, number: int, start: Position) -> Iterator[Window]:
        """The windows of virtual shard `shard` and source `number` from `start` on, the first of them asked for now."""
        worker = self.workers[shard % len(self.workers)]
        return self._windows(worker, worker.ask((shard, number, start, self.lot)), (shard, number))

    def _windows(self, worker: Worker, first: int, lane: tuple[int, int]) -> Iterator[Window]:
        question = first
        while windows := worker.answer(question):
            question = worker.ask((*lane, windows[-1].after, self.lot))
            yield from windows

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


def start_workers(making: Making, count: int) -> Workers:
    """So many processes that make what `making` does. Effect: starts them; `close` ends them, and so does the end of
    this process.

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
    lot = max(1, WINDOW // making.seq_len) if making.packing.how == "concat" else 1
    return Workers(tuple(_start(order) for _ in range(count)), lot)


def _start(order: bytes) -> Worker:
    here, there = Pipe()
    command = [sys.executable, "-m", "omni_data.worker", str(there.fileno())]
    process = subprocess.Popen(command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL)
    there.close()
    worker = Worker(process, here)
    here.send((sys.path, order))
    return worker
