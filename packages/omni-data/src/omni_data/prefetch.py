"""A stream, worked ahead of its consumer by one thread."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from omni_data.cursor import Cursor
from omni_data.stream import Stream

T = TypeVar("T")


def prefetch(stream: Stream[T], depth: int = 2) -> Generator[tuple[T, Cursor], None, None]:
    """The same items in the same order, up to `depth` of them made ahead. Effect: a thread, from the first item on.

    A cursor is that of its item, however far the thread has got. What the stream raises is raised at the item where it
    happened. Closing the result, or dropping it, stops the thread once the item in the making is done.

    Raises:
        ValueError: if `depth` is not positive.
    """
    if depth < 1:
        raise ValueError(f"depth={depth} must be at least 1.")
    return _prefetch(stream, depth)


def _prefetch(stream: Stream[T], depth: int) -> Generator[tuple[T, Cursor], None, None]:
    worker = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        made: deque[Future[tuple[T, Cursor] | None]] = deque(worker.submit(next, stream, None) for _ in range(depth))
        while (item := made.popleft().result()) is not None:
            made.append(worker.submit(next, stream, None))
            yield item
    finally:
        worker.shutdown(cancel_futures=True)
