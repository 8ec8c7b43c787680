"""A shuffle that is a formula: where each item goes, without a list of all of them.

A Feistel network turns any function of half the bits into a bijection of all of them. Its domain is a power of two, so
an image that falls outside `range(n)` is permuted again until it falls inside (cycle walking), which keeps it a
bijection and takes fewer than two rounds on average, as the domain is smaller than 2n.

Black and Rogaway, "Ciphers with arbitrary finite domains", 2002. The mixing function is the finalizer of SplitMix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
"""

from collections.abc import Callable, Sequence

_ROUNDS = 6
_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def permute(i: int, n: int, seed: tuple[int, ...]) -> int:
    """Where the bijection of `range(n)` named by `seed` sends `i`. O(1) in time and memory.

    >>> sorted(permute(i, 5, seed=(0, 1)) for i in range(5))
    [0, 1, 2, 3, 4]

    Raises:
        ValueError: if `i` is not in `range(n)`.
    """
    return permutation(n, seed)(i)


def permutation(n: int, seed: tuple[int, ...]) -> Callable[[int], int]:
    """The bijection of `range(n)` that `permute` takes `seed` for, for many of its items. Pure."""
    key = 0
    for part in seed:
        key = _mix((key + _GOLDEN ^ part) & _WORD)
    bits = (n - 1).bit_length()
    keys = [(key + turn * _GOLDEN) & _WORD for turn in range(1, _ROUNDS + 1)]

    def image(i: int) -> int:
        if not 0 <= i < n:
            raise ValueError(f"i={i} is not in range({n}).")
        i = _feistel(i, bits, keys)
        while i >= n:
            i = _feistel(i, bits, keys)
        return i

    return image


def _feistel(x: int, bits: int, keys: Sequence[int]) -> int:
    """A bijection of `range(2 ** bits)`. The halves swap each round; an even number of rounds restores their widths."""
    low_bits, high_bits = bits - bits // 2, bits // 2
    high, low = x >> low_bits, x & ((1 << low_bits) - 1)
    for key in keys:
        high, low = low, high ^ _mix(key ^ low) & ((1 << high_bits) - 1)
        high_bits, low_bits = low_bits, high_bits
    return high << low_bits | low


def _mix(x: int) -> int:
    """64 bits in, 64 bits out, each of which depends on all."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _WORD
    return x ^ (x >> 31)
