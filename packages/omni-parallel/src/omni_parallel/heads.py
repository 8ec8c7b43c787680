"""Which rank computes which heads of attention. Pure.

Query heads are dealt in runs, the longest as short as can be, so that no rank waits for another longer than it must;
among such deals the one that sends the fewest key and value heads is taken. Ranks may get unequal numbers of heads,
and none: nothing is padded, so no rank computes, and no link carries, a head that is not there.
"""

from functools import cache
from itertools import pairwise
from math import gcd


@cache
def deal_heads(start: int, stop: int, group: int, parts: int) -> tuple[range, ...]:
    """The heads from `start` to `stop` in `parts` runs, of which no key and value head more than needed is copied.

    Args:
        start: the first query head.
        stop: the one after the last.
        group: query heads that share a key and value head; heads 0, 1, ... group - 1 share the first.
        parts: how many runs; some are empty where there are more runs than heads.

    >>> deal_heads(0, 14, 7, 4)  # 14 query heads over 2 key and value heads: no run crosses head 7
    (range(0, 4), range(4, 7), range(7, 11), range(11, 14))
    """
    longest = -(-(stop - start) // parts)
    # best[head] is the cheapest way to deal the heads before `head` to the parts seen so far: its cost, and its cuts.
    best: dict[int, tuple[tuple[int, int, int], tuple[int, ...]]] = {start: ((0, 0, 0), (start,))}
    for left in range(parts - 1, -1, -1):
        following: dict[int, tuple[tuple[int, int, int], tuple[int, ...]]] = {}
        for head, (cost, cuts) in sorted(best.items(), reverse=True):
            for end in range(max(head, stop - left * longest), min(stop, head + longest) + 1):
                run = range(head, end)
                runs = run_lengths(run, group)
                added = (len(runs), int(len(set(runs)) > 1), len(run) ** 2)
                total = (cost[0] + added[0], cost[1] + added[1], cost[2] + added[2])
                # Where nothing else decides, longer runs come first.
                if end not in following or total < following[end][0]:
                    following[end] = total, (*cuts, end)
        best = following
    return tuple(range(a, b) for a, b in pairwise(best[stop][1]))


def shared_heads(run: range, group: int) -> range:
    """The key and value heads that the query heads of `run` read, where `group` query heads share one.

    >>> shared_heads(range(4, 9), 4)
    range(1, 3)
    """
    return range(run.start // group, -(-run.stop // group)) if run else range(run.start // group, run.start // group)


def run_lengths(run: range, group: int) -> tuple[int, ...]:
    """How many query heads of `run` read each key and value head of `shared_heads(run, group)`.

    >>> run_lengths(range(4, 9), 4)
    (4, 1)
    """
    return tuple(min(run.stop, (head + 1) * group) - max(run.start, head * group) for head in shared_heads(run, group))


def repeated_heads(run: range, group: int) -> tuple[int, ...] | None:
    """Which of the shared heads of `run` to lay side by side so that each serves equally many query heads.

    None where they already do. Attention kernels ask for it: query head i reads key head i // (queries per key).

    >>> repeated_heads(range(4, 10), 4)  # four heads read the first, two the second
    (0, 0, 1)
    """
    lengths = () if group == 1 else run_lengths(run, group)
    if len(set(lengths)) <= 1:
        return None
    each = gcd(*lengths)
    return tuple(index for index, length in enumerate(lengths) for _ in range(length // each))
