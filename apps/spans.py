"""Arithmetic of spans of time: when anything of many ran, and when one thing ran and others did not. Pure."""

from collections.abc import Iterable, Sequence
from itertools import chain

Span = tuple[float, float]
"""From when until when. A span without length is none."""


def union(spans: Iterable[Span]) -> list[Span]:
    """When any of `spans` is: in order, none of which touch.

    >>> union([(3, 4), (0, 2), (1, 3), (6, 6)])
    [(0, 4)]
    """
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if begin >= end:
            continue
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((begin, end))
    return joined


def subtract(spans: Iterable[Span], *others: Iterable[Span]) -> list[Span]:
    """When any of `spans` is, and none of `others`: in order, none of which overlap.

    >>> subtract([(0, 10)], [(2, 3)], [(5, 20)])
    [(0, 2), (3, 5)]
    """
    holes = union(chain(*others))
    left: list[Span] = []
    at = 0
    for span_begin, end in union(spans):
        begin = span_begin
        while at < len(holes) and holes[at][1] <= begin:
            at += 1
        hole = at
        while hole < len(holes) and holes[hole][0] < end:
            left.append((begin, holes[hole][0]))
            begin = holes[hole][1]
            hole += 1
        left.append((begin, end))
    return [(begin, end) for begin, end in left if begin < end]


def overlap(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """When any of `spans` is, and any of `others`, too: in order.

    >>> overlap([(0, 4), (6, 9)], [(3, 7)])
    [(3, 4), (6, 7)]
    """
    whole = union(spans)
    return subtract(whole, subtract(whole, others))


def length(spans: Sequence[Span]) -> float:
    """How long all of `spans` are together, which do not overlap.

    >>> length([(0, 4), (6, 9)])
    7
    """
    return sum(end - begin for begin, end in spans)
