"""A save that goes on in a thread of its own. Effect: a thread."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import torch.distributed as dist

from omni_ckpt.ranks import Group


class Saving:
    """A save that is under way: call it to wait for its end. Every rank waits."""

    def __init__(self, work: Callable[[], Path], own_group: Group) -> None:
        self._outcome: Future[Path] = Future()
        self._own_group = own_group

        def run() -> None:
            try:
                self._outcome.set_result(work())
            except BaseException as error:  # noqa: BLE001  It is raised to whoever waits.
                self._outcome.set_exception(error)

        # Not a daemon: a process that ends waits for it, and commits.
        self._thread = threading.Thread(target=run, name="omni-save")
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended on this rank, well or not; then a call returns, or raises, at once."""
        return self._outcome.done()

    def __call__(self) -> Path:
        """The path, once it is written on every rank and on the device. Raises as `save_dcp`."""
        self._thread.join()
        if self._own_group is not None:
            dist.destroy_process_group(self._own_group)
            self._own_group = None
        return self._outcome.result()
