"""Which checkpoints of a run stay, and the deletion of the others. Effect: disk; for one rank to call."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_ckpt.disk import clear, unname
from omni_ckpt.faults import At, nothing
from omni_ckpt.layout import leftovers, step_of, steps
from omni_ckpt.manifest import PIN_FILE, glance
from omni_ckpt.places import as_place, is_there
from omni_ckpt.storage import read_plain


@dataclass(frozen=True, slots=True)
class Retention:
    """What stays: all that any of these names, and whatever has a file PINNED."""

    newest: int = 2
    """So many of the newest."""
    every: int | None = None
    """Those of every so-many-th step."""
    best: int = 0
    """So many of those with the least `metric`."""
    metric: str = "metrics.loss"
    """A number among the plain values, by flat name."""


def check_retention(keep: Retention) -> None:
    """Raises `ValueError` if `keep` cannot be meant, with everything that is wrong. Pure."""
    rules = [
        (keep.newest >= 1, f"newest={keep.newest}: at least the newest checkpoint is kept."),
        (keep.every is None or keep.every >= 1, f"every={keep.every}: a number of steps is at least 1."),
        (keep.best >= 0, f"best={keep.best}: a number of checkpoints is at least 0."),
    ]
    if problems := [message for holds, message in rules if not holds]:
        raise ValueError("\n".join(problems))


def to_prune(root: Path, keep: int | Retention) -> list[Path]:
    """The complete checkpoints under `root` that `keep` does not name, oldest first; a number is of the newest.

    Only whole checkpoints are counted: whose files are there, in the sizes that the manifest gives. Others, and those
    that are pinned, are neither counted nor deleted.

    Raises:
        ValueError: if `keep` cannot be meant.
        OSError: if something cannot be read: nothing is taken for damaged, or for not pinned, because of that.
    """
    keep = Retention(newest=keep) if isinstance(keep, int) else keep
    check_retention(keep)
    whole = [path for path in steps(root) if not glance(path)]
    kept = set(whole[-keep.newest :])
    kept |= {path for path in whole if keep.every and step_of(path) % keep.every == 0}
    kept |= {path for path in whole if is_there(path / PIN_FILE)}
    if keep.best:
        scores = {path: _score(path, keep.metric) for path in whole}
        kept |= {path for path in sorted(whole, key=scores.__getitem__)[: keep.best] if math.isfinite(scores[path])}
    return [path for path in whole if path not in kept]


def prune(root: Path, keep: int | Retention, *, at: At = nothing) -> list[Path]:
    """Delete `to_prune(root, keep)`, and return where they were. Effect: deletes; not collective, for one rank.

    Each loses its name before its first file goes. What killed saves and prunes left is deleted, too.

    Raises:
        ValueError: as `to_prune`.
        OSError: if something cannot be deleted.
    """
    root = as_place(root)
    victims = to_prune(root, keep)
    for victim in victims:
        doomed = unname(victim)
        at("pruned", doomed)
        clear(doomed)
    for remain in leftovers(root):
        clear(remain)
    return victims


def clear_leftovers(root: Path) -> None:
    """Delete what killed saves and prunes left under `root`, for whoever holds it (`claim`). Effect: deletes; not
    collective, for one rank.

    Raises:
        OSError: if something cannot be deleted.
    """
    for remain in leftovers(as_place(root), held=True):
        clear(remain)


def _score(path: Path, name: str) -> float:
    """The number that has the flat `name` among the plain values of checkpoint `path`; infinite if none has."""
    try:
        value: Any = read_plain(path)
    except ValueError:
        return math.inf
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) and math.isfinite(value) else math.inf
