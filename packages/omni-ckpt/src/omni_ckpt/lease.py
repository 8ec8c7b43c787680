"""One writer of a place in object storage at a time: a lease, which is renewed while it is held. Effect: network, a
thread.

    run.lock    {"holder": in words, "id": random, "machine": ..., "process": ..., "renewed": seconds since 1970}

Object storage has no lock that is one act. Who takes the lease writes it, waits, and reads it back: of two who begin at
once the one that wrote last has it, and the other sees that, unless its writing takes longer than the wait. Clocks of
machines must agree to within a minute. So a lease keeps runs from each other that a person started twice; it is no
proof against a network that stalls.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from omni_ckpt.places import ABSENT, asking, read_bytes, remove_file

RENEW_S: Final = 20.0
"""Seconds between renewals."""
GIVEN_UP_S: Final = 120.0
"""Seconds without renewal after which a lease is anybody's."""
SETTLE_S: Final = 2.0
"""Seconds from writing a lease to reading it back."""


@contextmanager
def lease(file: Path, taken: Callable[[str], str]) -> Iterator[Callable[[], None]]:
    """While open, `file` says that this process holds a lease, and is renewed by a thread. At the end it is deleted.

    Args:
        file: in object storage.
        taken: what to say if another holds it, of that other in words.

    Yields:
        A check: it raises if the lease was lost since.

    Raises:
        ValueError: if another holds it, or `file` is no lease.
        OSError: if the storage does not answer.
    """
    mine = {
        "holder": f"process {os.getpid()} of {socket.gethostname()}",
        "id": uuid.uuid4().hex,
        "machine": _machine(),
        "process": os.getpid(),
    }
    if (other := _read(file)) is not None and not _is_given_up(other):
        raise ValueError(taken(_words(other)))
    _write(file, mine)
    time.sleep(SETTLE_S)
    if (other := _read(file)) is None or other["id"] != mine["id"]:
        raise ValueError(taken("another process, which began at the same time" if other is None else _words(other)))
    held = _Held(file, mine)
    try:
        yield held.check
    finally:
        held.end()


class _Held:
    """A lease that is held, and the thread that renews it."""

    def __init__(self, file: Path, mine: dict[str, Any]) -> None:
        self.file, self.mine = file, mine
        self.renewed, self.lost, self.trouble = time.monotonic(), "", ""
        self.ended = threading.Event()
        # A daemon: who ends without leaving the lease gives it up.
        self.thread = threading.Thread(target=self._renew, name="omni-lease", daemon=True)
        self.thread.start()

    def check(self) -> None:
        """Raises `ValueError` if another has the lease, or may have it by now."""
        late = time.monotonic() - self.renewed
        if self.lost:
            raise ValueError(f"{self.file} is no longer this run's: {self.lost} took it. End one of the two runs.")
        if late > GIVEN_UP_S:
            raise ValueError(
                f"{self.file} was not renewed for {late:.0f} s, and counts as given up after {GIVEN_UP_S:.0f}: "
                f"{self.trouble or 'this process stood still'}. Another run may have taken its place."
            )

    def end(self) -> None:
        """Stop renewing, and delete the lease, if it is still this one."""
        self.ended.set()
        self.thread.join()
        # If the storage does not answer now, the lease is given up by itself, and what was done under it is done.
        with suppress(OSError, ValueError):
            if not self.lost and (found := _read(self.file)) is not None and found["id"] == self.mine["id"]:
                remove_file(self.file)

    def _renew(self) -> None:
        while not self.lost and not self.ended.wait(RENEW_S):
            began = time.monotonic()
            try:
                found = _read(self.file)
                if found is not None and found["id"] != self.mine["id"]:
                    self.lost = _words(found)
                    return
                _write(self.file, self.mine)
            except (OSError, ValueError) as error:
                self.trouble = str(error)  # Told by `check` once it has lasted; until then the next try may do.
            else:
                self.renewed, self.trouble = began, ""


def _read(file: Path) -> dict[str, Any] | None:
    """The lease in `file`; None if there is none."""
    try:
        content = read_bytes(file)
    except ABSENT:
        return None
    try:
        found = json.loads(content)
        return {
            **{name: str(found[name]) for name in ("holder", "id", "machine")},
            "process": int(found["process"]),
            "renewed": float(found["renewed"]),
        }
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{file} is no lease of a run: delete it if no run writes there.") from error


def _write(file: Path, mine: dict[str, Any]) -> None:
    with asking(file):
        file.write_text(json.dumps(mine | {"renewed": time.time()}) + "\n")


def _is_given_up(other: dict[str, Any]) -> bool:
    """Whether `other` was not renewed for long, or is of a process of this machine that has ended."""
    if time.time() - other["renewed"] > GIVEN_UP_S:
        return True
    if not other["machine"] or other["machine"] != _machine():
        return False
    try:
        os.kill(other["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _words(other: dict[str, Any]) -> str:
    age = max(0.0, time.time() - other["renewed"])
    return f"{other['holder']} (seen {age:.0f} s ago; given up after {GIVEN_UP_S:.0f} s without a sign)"


def _machine() -> str:
    """What processes that see each other's numbers have in common; nothing where the system does not say it."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return f"{boot.read_text().strip()} {space.readlink()}" if boot.exists() and space.exists() else ""
