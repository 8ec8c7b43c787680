"""All ranks or none: a failure of one rank is a failure of every rank, with the same message.

Without a process group there is one rank, and nothing is communicated. `group` is what is communicated through, of all
ranks; None is the default one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import TypeAlias, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

T = TypeVar("T")
Group: TypeAlias = dist.ProcessGroup | None


@dataclass(frozen=True, slots=True)
class _Failure:
    """What went wrong on a rank, in a form that any exception has and that always travels."""

    rank: int
    kind: str
    errno: int | None
    text: str


def alone() -> bool:
    """Whether this process is the only rank: there is no process group."""
    return not (dist.is_available() and dist.is_initialized())


def my_rank() -> int:
    """This process among those of the default group."""
    return 0 if alone() else dist.get_rank()


def make_group(timeout_s: float = 1800.0) -> Group:
    """A group of all ranks for what they tell each other of a save, apart from training's. None in a process alone.

    Effect: collective; every rank connects to every other.

    Args:
        timeout_s: seconds that a rank waits for the others before it fails.
    """
    if alone():
        return None
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    assert isinstance(group, dist.ProcessGroup)  # Every rank is a member.
    return group


def gather(value: T, group: Group = None) -> list[T]:
    """`value` of each rank, by rank. Effect: collective."""
    if alone():
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def together(task: str, act: Callable[[], T], group: Group = None) -> T:
    """What `act()` returns on this rank, once every rank is done with its own. Effect: collective.

    Args:
        task: what is being done, for the message: "save run/step-00000010".
        act: what this rank does of it.
        group: of all ranks.

    Raises:
        ValueError, OSError, RuntimeError: on every rank if `act` raised on any; the kind is that of the lowest rank
            that failed, and an OSError keeps its errno.
    """
    results: list[T] = []
    failures, cause = frozenset[_Failure](), None
    try:
        results.append(act())
    except (Exception, CheckpointException) as error:  # noqa: BLE001  It is told to every rank, and raised below.
        failures, cause = _failures(error), error
    everyone = {failure for each in gather(failures, group) for failure in each}
    if everyone:
        raise _error(task, sorted(everyone, key=lambda failure: failure.rank)) from cause
    return results[0]


def on_first(task: str, act: Callable[[], None], group: Group = None) -> None:
    """Run `act()` on rank 0 and wait for it. Effect: collective; raises like `together`."""
    together(task, act if my_rank() == 0 else lambda: None, group)


def agree(task: str, facts: Mapping[str, object], group: Group = None) -> None:
    """Check that `facts` are the same on every rank. Effect: collective.

    Raises:
        ValueError: on every rank, naming the fact and the first rank that has it otherwise than rank 0.
    """
    for fact, value in facts.items():
        # A digest, since thousands of ranks send it: the value itself may be a long list of names.
        digests = gather(sha256(repr(value).encode()).hexdigest(), group)
        other = next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None)
        if other is not None:
            raise ValueError(f"cannot {task}: ranks 0 and {other} disagree on {fact}; here: {repr(value)[:200]}.")


def _failures(error: BaseException) -> frozenset[_Failure]:
    # torch tells every rank what failed on each: the same facts from several ranks become one by being equal.
    each = {r: e for r, (e, _) in error.failures.items()} if isinstance(error, CheckpointException) else None
    return frozenset(_failure(r, e) for r, e in (each or {my_rank(): error}).items())


def _failure(rank: int, error: BaseException) -> _Failure:
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        return _Failure(rank, "OSError", error.errno, f"{error.strerror}{where}")
    if isinstance(error, OSError | ValueError):
        return _Failure(rank, "OSError" if isinstance(error, OSError) else "ValueError", None, str(error))
    return _Failure(rank, "RuntimeError", None, f"{type(error).__name__}: {error}")


def _error(task: str, failures: list[_Failure]) -> Exception:
    ranks_of: dict[str, list[int]] = {}
    for failure in failures:
        ranks_of.setdefault(failure.text, []).append(failure.rank)
    shown = [f"{_ranks(ranks)}{text}" for text, ranks in ranks_of.items()]
    message = f"cannot {task}: " + "\n".join(shown[:4] + [f"and {len(shown) - 4} other failures"] * (len(shown) > 4))
    first = failures[0]
    if first.errno is not None:
        return OSError(first.errno, message)
    return {"OSError": OSError, "ValueError": ValueError, "RuntimeError": RuntimeError}[first.kind](message)


def _ranks(ranks: list[int]) -> str:
    if alone() or len(ranks) == dist.get_world_size():
        return ""
    names = ", ".join(map(str, ranks[:4])) + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {names}: "
