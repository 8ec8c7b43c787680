"""Rounding to bfloat16 that is right on average (Gupta et al., 2015, arXiv:1502.02551), by dice that have no state.

A number between two of bfloat16 becomes the upper one as likely as it is near to it. So what is added again and again
is not lost, if it is less than half the distance between them, as it is where the nearest is taken.

Dice are Philox's (Salmon et al., 2011, doi:10.1145/2063384.2063405): a function of what they are thrown for. Numbers of
a run that was stopped are those of one that was not, and nothing of it is stored. Replicas throw the same.

Dimensions: n numbers of a tensor.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

_ROUNDS: Final = 10
_FACTORS: Final = (0xD2511F53, 0xCD9E8D57)
_RAISES: Final = (0x9E3779B9, 0xBB67AE85)
_WORD: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Throw:
    """What dice are thrown for, beside the place of a number in its tensor."""

    steps: Tensor
    """Which step it is: a scalar of any dtype, less than 2**32."""
    param: int
    """Which parameter."""
    shard: int
    """Which part of it."""
    start: int = 0
    """Place of the first number; divides by 4."""


def number_shard(tensor: Tensor) -> int:
    """Which part of the whole this rank has of `tensor`, among those that are not copies of each other."""
    number = 0
    if isinstance(tensor, DTensor):
        here = tensor.device_mesh.get_coordinate()
        assert here is not None
        for dim, place in enumerate(tensor.placements):
            if not place.is_replicate():
                number = number * tensor.device_mesh.size(dim) + here[dim]
    return number


def throw(what: Throw, n: int) -> Tensor:
    """32 random bits for each of `n` numbers, the same on every device: (n,) int64, at least 0."""
    assert what.start % 4 == 0
    device = what.steps.device
    fours = torch.arange(-(-n // 4), device=device) + what.start // 4
    rest = torch.zeros_like(fours)
    key = (what.steps.long(), torch.full_like(what.steps, what.param, dtype=torch.int64))
    words = philox((fours & _WORD, fours >> 32, rest + what.shard, rest), key)
    return torch.stack(words, dim=1).flatten()[:n]


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words for each counter of four, by a key of two: all of 32 bits, held in int64. Pure."""
    (a, b, c, d), (k, l) = counter, key
    for _ in range(_ROUNDS):
        # Products of 64 bits overflow, which leaves all their bits right.
        first, second = a * _FACTORS[0], c * _FACTORS[1]
        a, b = (second >> 32 & _WORD) ^ b ^ k, second & _WORD
        c, d = (first >> 32 & _WORD) ^ d ^ l, first & _WORD
        k, l = k + _RAISES[0] & _WORD, l + _RAISES[1] & _WORD
    return a, b, c, d


def round_by(x: Tensor, bits: Tensor) -> Tensor:
    """`x` (fp32) in bf16, rounded up or down by 16 random `bits` (of its shape, int64). Pure.

    Of the numbers from 0 to 65535 as many round up as `x` is 65536ths of the way. What bf16 has stays, as do infinities
    and what is not a number.
    """
    # As integers the numbers of a format are in the order of their magnitudes, and equally far from the next.
    rounded = (x.view(torch.int32) + bits.int() & -65536).view(torch.float32)
    return torch.where(x.isnan(), x, rounded).bfloat16()


def round_moments(first: Tensor, second: Tensor, what: Throw) -> tuple[Tensor, Tensor]:
    """Two tensors (fp32, of one shape) in bf16, by the lower and the upper half of the same words. Pure."""
    words = throw(what, first.numel()).view(first.shape)
    return round_by(first, words & 0xFFFF), round_by(second, words >> 16)
