"""A shuffle that is a formula: where each item goes, without a list of all of them.

A Feistel network turns any function of half the bits into a bijection of all of them. Its domain is a power of two, so
an image that falls outside `range(n)` is permuted again until it falls inside (cycle walking), which keeps it a
bijection and takes fewer than two rounds on average, as the domain is smaller than 2n.

Black and Rogaway, "Ciphers with arbitrary finite domains", 2002. The mixing function is the finalizer of SplitMix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
"""

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
    if not 0 <= i < n:
        raise ValueError(f"i={i} is not in range({n}).")
    key = 0
    for part in seed:
        key = _mix((key + _GOLDEN ^ part) & _WORD)
    bits = (n - 1).bit_length()
    i = _feistel(i, bits, key)
    while i >= n:
        i = _feistel(i, bits, key)
    return i


def _feistel(x: int, bits: int, key: int) -> int:
    """A bijection of `range(2 ** bits)`. The halves swap each round; an even number of rounds restores their widths."""
    low_bits, high_bits = bits - bits // 2, bits // 2
    high, low = x >> low_bits, x & ((1 << low_bits) - 1)
    for turn in range(1, _ROUNDS + 1):
        mixed = _mix((key + turn * _GOLDEN ^ low) & _WORD) & ((1 << high_bits) - 1)
        high, low = low, high ^ mixed
        high_bits, low_bits = low_bits, high_bits
    return high << low_bits | low


def _mix(x: int) -> int:
    """64 bits in, 64 bits out, each of which depends on all."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _WORD
    return x ^ (x >> 31)
