"""Where checkpoints live: one directory per step under a root. Paths and directory listings only.

    root/step-00000010           complete: the name is given by one rename, after everything in it is on disk
    root/step-00000020.tmp       being written, or left behind by a save that was killed
    root/step-00000000.gone      being deleted, or left behind by a prune that was killed
    root/step-00000030.damaged   found damaged by a run that went on from an older one; for a person to look at

So a complete checkpoint is known by its name alone, and nothing here opens one. In object storage, where nothing is
renamed, `root/step-00000010` is complete if it has a manifest.
"""

from itertools import count
from pathlib import Path

from omni_ckpt.places import as_place, entries, is_folder, is_local, is_there

MANIFEST_FILE = "MANIFEST.json"

_PREFIX = "step-"
_WRITING = ".tmp"
_DELETING = ".gone"
_DAMAGED = ".damaged"


def step_dir(root: Path, step: int) -> Path:
    """Where the checkpoint of `step` lives.

    >>> step_dir(Path("run"), 10).name
    'step-00000010'
    """
    if step < 0:
        raise ValueError(f"step={step}: a step is at least 0.")
    return as_place(root) / f"{_PREFIX}{step:08d}"


def step_of(path: Path) -> int:
    """The step of the checkpoint directory `path`: the inverse of `step_dir`.

    >>> step_of(Path("run/step-00000010"))
    10
    """
    step = _parse(path.name)
    if step is None:
        raise ValueError(f"{path} is not named like a checkpoint, {step_dir(path.parent, 10).name} for example.")
    return step


def steps(root: Path) -> tuple[Path, ...]:
    """The complete checkpoints under `root`, oldest first; none if there is no `root`."""
    found = (path for path in entries(as_place(root)) if _parse(path.name) is not None and is_complete(path))
    return tuple(sorted(found, key=step_of))


def is_complete(path: Path) -> bool:
    """Whether `path` is a checkpoint that was committed, by its name or by its manifest."""
    return is_folder(path) if is_local(path) else is_there(path / MANIFEST_FILE)


def latest(root: Path) -> Path | None:
    """The newest complete checkpoint under `root`, if any."""
    return next(reversed(steps(root)), None)


def leftovers(root: Path, *, held: bool = False) -> list[Path]:
    """What killed saves and prunes left under `root`, in order of name.

    A half-written checkpoint counts once a complete one of the same or a later step exists: until then it may still
    be being written, unless `root` is `held`: on a disk, nobody else writes there then.
    """
    newest = latest(root)
    until = -1 if newest is None else step_of(newest)

    def is_left(path: Path) -> bool:
        step = _parse(path.name.removesuffix(path.suffix))
        half = path.suffix == _WRITING if is_local(path) else not path.suffix and not is_complete(path)
        over = step is not None and (step <= until or (held and is_local(path)))
        return step is not None and (path.suffix == _DELETING or (half and over))

    return [path for path in entries(as_place(root)) if is_left(path)]


def writing(path: Path) -> Path:
    """Where `path` is written before it is complete: on a disk a sibling, so that a rename can complete it."""
    return path.with_name(path.name + _WRITING) if is_local(path) else path


def deleting(path: Path) -> Path:
    """What `path` is called from the moment its deletion begins; in object storage it keeps its name."""
    return path.with_name(path.name + _DELETING) if is_local(path) else path


def damaged(path: Path) -> Path:
    """What `path` is called once it was found damaged: the first such name that is free."""
    names = (f"{path.name}{_DAMAGED}{n or ''}" for n in count())
    return next(other for name in names if not is_there(other := path.with_name(name)))


def _parse(name: str) -> int | None:
    digits = name.removeprefix(_PREFIX)
    exact = digits.isascii() and digits.isdigit() and name == f"{_PREFIX}{int(digits):08d}"
    return int(digits) if exact else None
