"""The checkpoint to go on from: the newest that is whole, and why newer ones are not. Effect: disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from omni_ckpt.disk import move
from omni_ckpt.layout import damaged, steps
from omni_ckpt.manifest import NewerFormat, damages, glance, read_manifest
from omni_ckpt.places import as_place
from omni_ckpt.ranks import Group, alone, gather, my_rank, on_first, together


@dataclass(frozen=True, slots=True)
class Choice:
    """What there is to go on from."""

    path: Path | None
    """The newest checkpoint that is whole."""
    damaged: dict[Path, list[str]]
    """What is wrong with each that is newer."""


def newest_whole(root: Path) -> Choice:
    """The newest checkpoint under `root` with which a `glance` finds nothing wrong. Effect: reads; for one process."""
    return _choose(steps(root), glance)


def newest_whole_together(root: Path, *, group: Group = None) -> Choice:
    """The newest checkpoint under `root` of which every file is what was written. Effect: collective; reads.

    Raises:
        OSError: if a file is there, but cannot be read.
    """
    # As the first rank sees them: on a shared disk others may see them later.
    paths = gather(steps(root) if my_rank() == 0 else (), group)[0]
    return _choose(paths, lambda path: check_together(path, group=group))


def _choose(paths: Sequence[Path], check: Callable[[Path], list[str]]) -> Choice:
    passed: dict[Path, list[str]] = {}
    for path in reversed(paths):
        if not (problems := check(path)):
            return Choice(path, passed)
        passed[path] = problems
    return Choice(None, passed)


def refuse_none_whole(root: Path, choice: Choice) -> None:
    """Raises `ValueError` if there are checkpoints under `root`, and none to go on from. Pure."""
    if choice.damaged and choice.path is None:
        told = "\n  ".join("; ".join(problems[:3]) for problems in choice.damaged.values())
        raise ValueError(
            f"no checkpoint of {root} is whole, so nothing can go on from it:\n  {told}\n"
            "Restore one of them, or start anew in another directory."
        )


def check_together(path: Path, *, group: Group = None) -> list[str]:
    """What is wrong with checkpoint `path`: every file is read, each rank its share. Effect: collective; reads.

    Raises:
        OSError: if a file is there, but cannot be read.
    """
    each = gather(together(f"read {path}", lambda: _check_share(as_place(path)), group), group)
    return list(dict.fromkeys(problem for problems in each for problem in problems))


def set_aside(choice: Choice, *, group: Group = None) -> dict[Path, Path]:
    """Rename the damaged checkpoints of `choice`, so that their steps can be saved again; nothing is deleted.

    Effect: collective; the first rank renames.

    Returns:
        Where each is now.
    """
    moved = {path: damaged(path) for path in choice.damaged} if my_rank() == 0 else {}

    def rename() -> None:
        for path, aside in moved.items():
            move(path, aside)

    on_first("set damaged checkpoints aside", rename, group)
    return gather(moved, group)[0]


def _check_share(path: Path) -> list[str]:
    """What is wrong with this rank's share of the files."""
    try:
        files = sorted(read_manifest(path).items())
    except NewerFormat:
        raise
    except ValueError as problem:
        return [str(problem)]
    share = files if alone() else files[my_rank() :: dist.get_world_size()]
    return damages(path, dict(share))
