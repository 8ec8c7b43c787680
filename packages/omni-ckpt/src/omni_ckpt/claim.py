"""One writer of a place at a time: on a disk by a lock of the system, in object storage by a lease. Effect: disk or
network."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from omni_ckpt.lease import lease
from omni_ckpt.places import as_place, is_local

CLAIM_FILE: Final = "run.lock"


@contextmanager
def claim(root: Path) -> Iterator[Callable[[], None]]:
    """While open, `root` is this process's to write, and any other `claim` of it fails, on whatever machine.

    On a disk the lock is the system's (flock), which forgets it when the process ends, however it ends. The file stays.
    In object storage, which has no such lock, it is a lease, renewed every 20 s and given up after 120 s without: see
    `lease.py` for what that does not promise.

    Yields:
        A check, which raises `ValueError` if the place was lost since. On a disk it cannot be.

    Raises:
        ValueError: if another process holds it, named as it named itself.
        OSError: if the file system knows no locks, or the storage does not answer.
    """
    root = as_place(root)
    held = _locked(root) if is_local(root) else lease(root / CLAIM_FILE, lambda holder: _taken(root, holder))
    with held as check:
        yield check


@contextmanager
def _locked(root: Path) -> Iterator[Callable[[], None]]:
    import fcntl

    root.mkdir(parents=True, exist_ok=True)
    with (root / CLAIM_FILE).open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            stream.seek(0)
            raise ValueError(_taken(root, stream.read(200).strip() or "another process")) from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} of {socket.gethostname()}\n")
        stream.flush()
        yield lambda: None


def _taken(root: Path, holder: str) -> str:
    return (
        f"{root} is being written by {holder}: two runs in one directory would spoil each other. Wait for it, end it, "
        "or choose another directory."
    )
