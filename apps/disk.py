"""What there is on disks, room too, and sizes as people read them."""

from pathlib import Path
from shutil import disk_usage


def size_of(count: float) -> str:
    """So many bytes, in the unit that suits them. Pure.

    >>> size_of(12), size_of(4_500_000), size_of(16.4e9), size_of(36e15)
    ('12 B', '4.5 MB', '16.4 GB', '36,000.0 TB')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count:,.0f} B"


def check_merged(model: str) -> None:
    """Raises `ValueError` if `model` is the directory of a run, or of a checkpoint of one, which has parts of weights.
    Effect: looks."""
    path, config = Path(model).absolute(), "model/config.json"
    if (path / config).is_file():
        raise ValueError(
            f"{model} is a run, not a model. Merge it first: uv run apps/merge.py {model} --to {model}/merged"
        )
    if (step := path.name.removeprefix("step-")).isdigit() and (path.parent / config).is_file():
        run = Path(model).parent
        raise ValueError(
            f"{model} is a checkpoint, not a model. Merge it first: uv run apps/merge.py {run} --step {int(step)} "
            f"--to {run}/merged-{int(step)}"
        )


def nearest_there(place: Path) -> Path:
    """`place`, or what it will be made in if it is not there yet. Effect: looks at the disk."""
    return next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())


def free_bytes(place: Path) -> int:
    """What is free where `place` is or will be. Effect: asks the system."""
    return disk_usage(nearest_there(place)).free
