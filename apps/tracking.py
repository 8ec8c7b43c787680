"""What a run writes into metrics.jsonl and eval.jsonl is told to services that show it, too.

A thread for each keeps training from waiting for it. One that fails, or does not keep up, is told once and left alone:
the files are the record, and a later start of the run tells it all of them.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from heapq import merge
from pathlib import Path
from queue import Full, Queue
from threading import Lock, Thread
from typing import Any, Final

from fields import to_plain
from patience import MARGIN_S
from redact import plain_values, without_secrets
from request import Config
from resume import tell_on_stderr
from trackers import END_S, OPENERS, Tracked, Tracker, Values

Row = Mapping[str, Any]
Track = Callable[[Row, str], None]
"""Called with a row, and with what its names begin with."""
EVAL: Final = "eval/"
"""What names of rows of eval.jsonl begin with."""
MOST_BEHIND: Final = 10_000
"""Rows that wait for a service before it is left alone."""


def untracked(row: Row, above: str) -> None:
    """Tells nobody."""


@contextmanager
def tracking(
    config: Config,
    asked: object,
    *,
    first: int,
    chief: bool,
    allowing: Callable[[float], AbstractContextManager[None]],
) -> Iterator[Track]:
    """While open, a function that tells the services of --track of a row.

    Effect: on the first rank, threads; leaving waits until they have told all, for a minute at most.

    Args:
        config: of the run.
        asked: all settings of the app.
        first: the step that the run stands at; the files have its rows until there.
        chief: whether this is the first rank.
        allowing: is told how long leaving may take.
    """
    names = dict.fromkeys(config.tracking.track) if chief else {}
    marks = config.out / "tracked"
    for mark in marks.iterdir() if chief and marks.is_dir() else ():
        if mark.name not in names:
            mark.unlink()  # It will not have the rows to come.
    written = {path: _size(path) for path in (config.out / "metrics.jsonl", config.out / "eval.jsonl")}
    feeds = []
    for name in names:
        marks.mkdir(exist_ok=True)
        called = config.tracking.track_name or config.out.resolve().name
        settings = plain_values(to_plain(asked))
        run = Tracked(config.out, config.tracking.track_project, called, settings, first, marks / name)
        feeds.append(Feed(name, run, OPENERS[name], written))

    def track(row: Row, above: str) -> None:
        for feed in feeds:
            feed.put(int(row["step"]), flatten(row, above))

    failed = True
    try:
        yield track
        failed = False
    finally:
        until = time.monotonic() + END_S
        with allowing(END_S + MARGIN_S):
            for feed in feeds:
                feed.end(failed)
            for feed in feeds:
                feed.wait(until - time.monotonic())


class Feed:
    """A service, and the thread that tells it of rows."""

    def __init__(
        self, name: str, run: Tracked, begin: Callable[[Tracked], Tracker], written: Mapping[Path, int]
    ) -> None:
        """`written` has the size of each file of rows at the start."""
        self.name, self.run, self.begin, self.written = name, run, begin, written
        self.rows: Queue[tuple[int, Values] | bool] = Queue(MOST_BEHIND)
        self.lost, self.losing = False, Lock()
        self.thread = Thread(target=self._work, name=f"tracking by {name}", daemon=True)
        self.thread.start()

    def put(self, step: int, values: Values) -> None:
        """Have it told. Effect: tells on stderr if it does not keep up."""
        self._put((step, values))

    def end(self, failed: bool) -> None:
        """Have it told that this was all, and whether the run failed."""
        self._put(failed)

    def wait(self, seconds: float) -> None:
        """Wait until it was told all, so long at most. Effect: tells on stderr if it was not."""
        if not self.lost:
            self.thread.join(max(0.0, seconds))
        if self.thread.is_alive():
            self._lose(f"it did not take all rows in {END_S:.0f} s")

    def _put(self, what: tuple[int, Values] | bool) -> None:
        try:
            if not self.lost:
                self.rows.put_nowait(what)
        except Full:
            self._lose(f"it is {MOST_BEHIND:,} rows behind")

    def _work(self) -> None:
        row: tuple[int, Values] | bool = True
        try:
            tracker = self.begin(self.run)
            self.run.mark.unlink(missing_ok=True)  # Who is killed leaves none before all rows are there.
            for step, values in read_rows(self.written):
                if step > tracker.has and not self.lost:
                    tracker.log(step, values)
            self.run.mark.write_text(tracker.id)
            while not self.lost and not isinstance(row := self.rows.get(), bool):
                tracker.log(*row)
            tracker.close(row is not False)
        except Exception as error:  # noqa: BLE001  A service raises what it likes, and training goes on.
            self._lose(f"{type(error).__name__}: {error}")
        finally:
            if self.lost:
                self.run.mark.unlink(missing_ok=True)

    def _lose(self, why: str) -> None:
        with self.losing:
            if not self.lost:
                goes_on = f"The run goes on, and {self.run.out} has its rows."
                tell_on_stderr(f"NOT TRACKED by {self.name} from here on: {why}. {goes_on}")
                self.run.mark.unlink(missing_ok=True)
                self.lost = True


def flatten(row: Row, above: str = "") -> dict[str, float]:
    """The numbers of a row by name, without secrets, but for its step; those of a list by their places in it. Pure.

    >>> flatten({"step": 3, "loss": 1.5, "expert_load": [0.5, 1.5]}, "eval/")
    {'eval/loss': 1.5, 'eval/expert_load/0': 0.5, 'eval/expert_load/1': 1.5}
    """
    flat: dict[str, float] = {}
    for name, value in ((without_secrets(name), value) for name, value in row.items()):
        if isinstance(value, list):
            flat |= {f"{above}{name}/{i}": one for i, one in enumerate(value)}
        elif name != "step":
            flat[above + name] = value
    return flat


def read_rows(written: Mapping[Path, int]) -> Iterator[tuple[int, dict[str, float]]]:
    """The rows of files, each until the size that it had, in the order of their steps. Effect: reads."""
    each = (_read(path, size, EVAL if path.stem == "eval" else "") for path, size in written.items())
    return merge(*each, key=lambda told: told[0])


def _read(path: Path, size: int, above: str) -> Iterator[tuple[int, dict[str, float]]]:
    if not size:
        return
    with path.open("rb") as file:
        while file.tell() < size:
            row = json.loads(file.readline())
            yield row["step"], flatten(row, above)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
