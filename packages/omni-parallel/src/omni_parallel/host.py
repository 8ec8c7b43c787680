"""Memory of the host that a GPU reads and writes at the speed of its link: pages that stay where they are.

Torch pins powers of two, up to twice as much as asked for. Here pages of our own are pinned, no more than are needed.
"""

import mmap
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True, weakref_slot=True, eq=False)
class Host:
    """Memory of the host, pinned as long as this is held."""

    memory: Tensor
    """Bytes."""


def make_host(nbytes: int, *, pin: bool, what: str, remedy: str) -> Host:
    """Zeros: `nbytes` bytes of the host. Effect: allocates.

    Args:
        nbytes: at least 1.
        pin: for copies from a GPU and to it.
        what: what they are for, in words.
        remedy: what to do if there are not as many.

    Raises:
        ValueError: if there is not so much, or it cannot be pinned.
    """
    if not pin:
        return Host(torch.zeros(nbytes, dtype=torch.uint8))
    try:
        pages = mmap.mmap(-1, nbytes)
    except OSError as error:
        raise ValueError(f"the host has not {nbytes / 1e9:.2f} GB more for {what} ({error}): {remedy}.") from error
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    cuda: Any = torch.cuda.cudart()
    error = cuda.cudaHostRegister(memory.data_ptr(), nbytes, 0)
    if int(error):
        raise ValueError(f"the host cannot pin {nbytes / 1e9:.2f} GB more for {what} ({error}): {remedy}.")
    host = Host(memory)
    weakref.finalize(host, cuda.cudaHostUnregister, memory.data_ptr()).atexit = False
    return host
