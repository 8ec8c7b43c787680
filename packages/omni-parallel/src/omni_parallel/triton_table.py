"""Where many tensors are, for a kernel that takes all of them at once: the host pays for one launch, not for each."""

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton.language as tl
from torch import Tensor

ALIGNED: Final = 16
"""Bytes that a thread moves at once; what begins elsewhere is moved number by number."""


def make_table(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """`rows` on `device`, (rows, columns) int64. The host does not wait."""
    table = torch.tensor(rows, dtype=torch.int64)
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


def kind_of(dtype: torch.dtype | None) -> Any:
    """What Triton calls `dtype`; None for None."""
    return None if dtype is None else getattr(tl, str(dtype).removeprefix("torch."))


def address(x: Tensor | None) -> int:
    """Where `x` begins; 0 for None."""
    return 0 if x is None else x.data_ptr()


def are_aligned(places: Sequence[int]) -> bool:
    """Whether all of these addresses are such that threads can move several numbers at once."""
    return not any(place % ALIGNED for place in places)
