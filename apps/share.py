"""Rows that several ranks cut between them are read by one of them, and sent to the others.

So a document is decoded once, however many ranks share its row, and what is wrong with it is known to all of them.
What others need not know of an item, as the arrays of its media, stays where it was read.
"""

from collections.abc import Callable, Generator, Iterator
from typing import Any, Final, TypeVar

import torch.distributed as dist

from omni_mesh import Mesh, peers

T = TypeVar("T")
TOLD: Final = (ValueError, RuntimeError, OSError)
"""What goes wrong with data, and is told to other ranks."""


def make_sequence_group(mesh: Mesh) -> dist.ProcessGroup | None:
    """The ranks that share rows with this one, for what the host tells; None if there is no other. Collective."""
    if mesh.spec.sp == 1:
        return None
    ranks = sorted({peers(mesh.spec, rank, "sp") for rank in range(dist.get_world_size())})
    group, _ = dist.new_subgroups_by_enumeration([list(each) for each in ranks], backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


def share(
    stream: Iterator[T] | None, group: dist.ProcessGroup, *, tell: Callable[[T], T] = lambda item: item
) -> Generator[T, None, None]:
    """The items of the stream of the first rank of `group`, on every rank of it. Effect: collective.

    Args:
        stream: on the first rank.
        group: of ranks that all take as many items.
        tell: from an item to what others are told of it.

    Raises:
        ValueError: on all ranks, if the stream does.
        RuntimeError: likewise.
        OSError: likewise.
    """
    ended = object()
    while True:
        told: list[Any] = [None]
        item: Any = None
        if stream is not None:
            try:
                item = next(stream, ended)
                told = [("end", None)] if item is ended else [("item", tell(item))]
            except TOLD as error:
                told = [("error", (kind_of(error), str(error)))]
        dist.broadcast_object_list(told, group=group, group_src=0)
        kind, value = told[0]
        if kind == "error":
            raise value[0](value[1])
        if kind == "end":
            return
        yield value if stream is None else item


def kind_of(error: Exception) -> type[Exception]:
    """The nearest error that every process knows. Pure."""
    return next(kind for kind in TOLD if isinstance(error, kind))
