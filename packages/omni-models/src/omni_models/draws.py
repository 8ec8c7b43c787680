"""Random numbers that depend on a key alone, so that what is drawn for a place of a row is the same on any mesh.

No generator and no state: integers are mixed by the finalizer of SplitMix64 (Steele, Lea and Flood, 2014, Fast
splittable pseudorandom number generators), as numpy's unsigned and torch's signed integers alike, which wrap.

Dimensions: F places, X numbers for each.
"""

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN: Final = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS: Final = 24
"""Of a uniform number: what a float32 has room for."""


def keys_of(seed: int, step: int, rows_F: NDArray[np.int64], places_F: NDArray[np.int64]) -> NDArray[np.int64]:
    """A key for each place of a step, (F,). Pure.

    Args:
        seed: of the run.
        step: done so far.
        rows_F: which of the rows that all ranks read in this step.
        places_F: in its row.
    """
    key_F = np.full(rows_F.shape, seed % 2**64, np.uint64)
    for part_F in (np.full(rows_F.shape, step), rows_F, places_F):
        key_F = _mix(key_F + np.uint64(_GOLDEN)) ^ part_F.astype(np.uint64)
    return _mix(key_F).view(np.int64)


def uniform_of(keys_F: Tensor, count: int) -> Tensor:
    """`count` numbers above 0 and below 1 for each key, (F, count), fp32. Pure."""
    index_X = torch.arange(1, count + 1, device=keys_F.device)
    mixed_FX = _mix_torch(keys_F[:, None] + index_X * _signed(_GOLDEN))
    return (_shift(mixed_FX, 64 - _BITS).to(torch.float32) + 0.5) / 2**_BITS


def normal_of(keys_F: Tensor, count: int) -> Tensor:
    """`count` normal numbers for each key, (F, count), fp32 (Box and Muller, 1958). Pure."""
    radius_FX, turn_FX = uniform_of(keys_F, 2 * count).split(count, dim=1)
    return (-2 * radius_FX.log()).sqrt() * (2 * math.pi * turn_FX).cos()


def _mix(key_F: NDArray[np.uint64]) -> NDArray[np.uint64]:
    key_F = (key_F ^ (key_F >> np.uint64(30))) * np.uint64(_FIRST)
    key_F = (key_F ^ (key_F >> np.uint64(27))) * np.uint64(_SECOND)
    return key_F ^ (key_F >> np.uint64(31))


def _mix_torch(key: Tensor) -> Tensor:
    key = (key ^ _shift(key, 30)) * _signed(_FIRST)
    key = (key ^ _shift(key, 27)) * _signed(_SECOND)
    return key ^ _shift(key, 31)


def _shift(key: Tensor, bits: int) -> Tensor:
    """To the right, as unsigned integers are."""
    return (key >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant
