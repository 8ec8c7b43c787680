"""One writer of a directory at a time. Effect: disk, a lock of the system that ends with the process."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CLAIM_FILE: Final = "run.lock"


@contextmanager
def claim(root: Path) -> Iterator[None]:
    """While open, `root` is this process's to write, and any other `claim` of it fails, on whatever machine.

    The lock is the system's (flock), which forgets it when the process ends, however it ends. The file stays.

    Raises:
        ValueError: if another process holds it, named as it named itself.
        OSError: if the file system knows no locks.
    """
    import fcntl

    root.mkdir(parents=True, exist_ok=True)
    file = root / CLAIM_FILE
    with file.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            stream.seek(0)
            holder = stream.read(200).strip() or "another process"
            raise ValueError(
                f"{root} is being written by {holder}: two runs in one directory would spoil each other. Wait for it, "
                "end it, or choose another directory."
            ) from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} of {socket.gethostname()}\n")
        stream.flush()
        yield
