"""Which documents share a row. Best fit, longest first: each document goes where it leaves the least room.

Rows with the same free space are interchangeable, so the search is a bisection over the distinct free spaces, of which
there are at most `seq_len`; with the sort this is O(n log n).

Johnson, "Near-optimal bin packing algorithms", 1973: best fit decreasing never takes more than 11/9 of the fewest rows
(and a small constant); on document lengths it is close to none wasted.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

_SHOWN = 5


def fit_rows(lengths: Sequence[int], seq_len: int) -> list[list[int]]:
    """The documents of each row, as indices into `lengths`; every document exactly once.

    Rows are in the order of their first document, and the documents of a row in theirs.

    >>> fit_rows([6, 5, 4, 3], seq_len=9)
    [[0, 3], [1, 2]]

    Args:
        lengths: tokens of each document.
        seq_len: tokens of a row.

    Raises:
        ValueError: if a document is empty or longer than a row.
    """
    if bad := [f"document {i} has {n}" for i, n in enumerate(lengths) if not 1 <= n <= seq_len]:
        more = f", and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise ValueError(
            f"{len(bad)} of {len(lengths)} documents do not have 1 to seq_len={seq_len} tokens: "
            f"{', '.join(bad[:_SHOWN])}{more}. Split the long ones and leave out the empty ones."
        )
    rows: list[list[int]] = []
    spaces: list[int] = []  # The distinct free spaces of open rows, ascending.
    rows_with: dict[int, list[list[int]]] = {}
    for document in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(spaces, lengths[document])
        if at == len(spaces):
            space, row = seq_len, []
            rows.append(row)
        else:
            space = spaces[at]
            row = rows_with[space].pop()
            if not rows_with[space]:
                del spaces[at], rows_with[space]
        row.append(document)
        if left := space - lengths[document]:
            if left not in rows_with:
                insort(spaces, left)
            rows_with.setdefault(left, []).append(row)
    return sorted(sorted(row) for row in rows)
