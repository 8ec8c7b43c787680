"""Where a run keeps what it makes: whether it can be kept there, and what is there already. Effect: disk or storage."""

import re
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final
from uuid import uuid4

from disk import nearest_there
from refusal import attempt
from request import Config

from omni_ckpt import newest_whole, refuse_none_whole

URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
"""How the path that was made of a URL begins."""


def open_places(problems: list[str], config: Config) -> Path | None:
    """Where checkpoints go, if that can be written, and `config.out` can; else what is wrong goes to `problems`.

    Effect: writes, to see whether that is possible, and leaves nothing.
    """
    attempt(problems, check_places, config)
    if problems:
        return None
    attempt(problems, check_writable, config.out, "--out")
    root = attempt(problems, config.checkpoints)
    if root is not None and config.save_to:
        attempt(problems, check_writable, root, flag_of_root(config))
    return None if problems else root


def flag_of_root(config: Config) -> str:
    """The flag that says where checkpoints go. Pure."""
    return "--save-to" if config.save_to else "--out"


def check_places(config: Config) -> None:
    """Raises `ValueError` if a place cannot hold what is to be kept there. Pure."""
    if URL.match(str(config.out)):
        url = URL.sub(r"\1://", str(config.out))
        raise ValueError(
            f"--out {config.out} is a URL, and a run needs a directory, for its metrics and its lock. Give its "
            f"checkpoints alone to storage: --save-to {url}"
        )
    if config.save_to and config.save_to.startswith("memory:"):
        raise ValueError(
            f"--save-to {config.save_to} is the memory of this process, and checkpoints would end with it: give a "
            "directory, or a URL of storage that stays."
        )


def check_writable(place: Path, flag: str) -> None:
    """Raises `ValueError` if nothing can be written into `place`, which `flag` gives.

    Effect: writes into it, or where it will be made, and deletes what was written.
    """
    try:
        if isinstance(place, Path):
            with TemporaryFile(dir=nearest_there(place)):
                pass
        else:
            _probe(place)
    except OSError as problem:
        raise ValueError(
            f"nothing can be written into {flag} {place}: {problem.strerror or problem}. Give this process the right "
            f"to write there, or choose another {flag}."
        ) from problem


def _probe(place: Path) -> None:
    """Write into storage and delete what was written. Raises `OSError`, whatever the library of this storage raises."""
    probe = place / f"probe-{uuid4().hex}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError:
        raise
    except Exception as problem:  # Each library has errors of its own, for credentials say; it is told.
        raise OSError(f"{type(problem).__name__}: {problem}") from problem


def find_checkpoint(root: Path) -> Path | None:
    """The checkpoint below `root` to go on from, if there are any. Effect: looks at the sizes of files.

    Raises:
        ValueError: if there are, and none is whole; or if there were, and all were set aside as damaged.
    """
    choice = newest_whole(root)
    refuse_none_whole(root, choice)
    aside = sorted(path.name for path in root.glob("step-*.damaged*")) if choice.path is None else []
    if aside:
        raise ValueError(
            f"no checkpoint of {root} is whole: there is nothing but {', '.join(aside)}, found damaged before, "
            "so nothing can go on from it.\nRestore one of them, under its name without .damaged, or start anew in "
            "another directory."
        )
    return choice.path
