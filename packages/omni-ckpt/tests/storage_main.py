"""Run as a script by `test_kills.py`: on a disk and in storage, whoever saves, prunes or sets aside is killed.

    python storage_main.py FOLDER

`FOLDER/killed.json` has, for each case, the steps that count, what `verify` finds wrong with them, and what the newest
whole one holds.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import get_args

import torch
import torch.distributed as dist
from storage import add_storage, killed_at

from omni_ckpt import (
    At,
    Fault,
    as_place,
    begin_save_dcp,
    load_dcp,
    newest_whole_together,
    prune,
    save_dcp,
    set_aside,
    step_dir,
    step_of,
    steps,
    verify,
)
from omni_ckpt.faults import Point
from omni_ckpt.layout import is_complete
from omni_ckpt.places import entries

KINDS = {"shelf://": "in storage", "": "on a disk"}
OF_EACH = ("staged", "begun", "writing", "written")
"""The points that each rank comes to; to the others the first one does."""


def tree(step: int, rank: int | None = None) -> dict:
    """What `rank` has of step `step`; None is for all of it."""
    own = {f"own{r}": torch.full((1000,), step + r / 4) for r in ((0, 1) if rank is None else (rank,))}
    return {"model": own | {"shared": torch.full((7,), float(step))}, "step": step}


def state(root: Path) -> dict:
    """What is under `root` now."""
    found = newest_whole_together(root).path
    assert found is not None
    loaded = load_dcp(tree(0), found)
    expected = tree(step_of(found))
    aside = [path for path in entries(root) if ".damaged" in path.name and is_complete(path)]
    return {
        "aside": [list(verify(path).problems) for path in aside],
        "steps": [step_of(path) for path in steps(root)],
        "wrong": [list(verify(path).problems) for path in steps(root)],
        "newest": step_of(found),
        "equal": loaded["step"] == expected["step"]
        and all(torch.equal(loaded["model"][name], value) for name, value in expected["model"].items()),
    }


def fork(act: Callable[[], object]) -> int:
    child = os.fork()
    if not child:
        try:
            act()
        except (RuntimeError, OSError):
            os._exit(3)
        os._exit(0)
    return child


def save_on_two(root: Path, store: Path, at: Callable[[int, int], At], begin: bool) -> list[int]:
    """Save step 2 by two ranks, and how each ended; `at` makes what happens from a rank and the process of rank 1."""

    def act(rank: int, other: int) -> None:
        timeout = timedelta(seconds=60)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timeout)
        how = {"at": at(rank, other), "then": lambda path: prune(root, 1, at=at(rank, other)) and None}
        if begin:
            begin_save_dcp(tree(2, rank), step_dir(root, 2), **how)()
        else:
            save_dcp(tree(2, rank), step_dir(root, 2), **how)

    second = fork(lambda: act(1, 0))
    first = fork(lambda: act(0, second))
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in (first, second)]


def strike(point: Point, victim: int) -> Callable[[int, int], At]:
    """Kills `victim` at `point`: as it comes there itself, or as the first rank does."""
    if point in OF_EACH or victim == 0:
        return lambda rank, other: Fault(point, victim, "kill")

    def of(rank: int, other: int) -> At:
        def kill(here: Point, path: Path) -> None:
            if here == point:
                os.kill(other, signal.SIGKILL)

        return kill

    return of


def main(folder: Path) -> None:
    add_storage()
    happened: dict[str, dict] = {}
    kept = folder / "kept"
    for step in (1, 2):
        save_dcp(tree(step), step_dir(as_place(f"shelf://{kept}"), step))

    def prepare(case: str, only: int | None = None, kind: str = "shelf://") -> Path:
        names = shutil.ignore_patterns(*(f"*{step}" for step in (1, 2) if only not in (None, step)))
        shutil.copytree(kept, folder / case, ignore=names)
        return as_place(f"{kind}{folder}/{case}")

    for point in get_args(Point):
        for victim in (0, 1):
            for way, kind in product(("save", "begin"), KINDS):
                root = prepare(case := f"{way} {point} {victim} {KINDS[kind]}", only=1, kind=kind)
                ends = save_on_two(root, folder / f"store {case}", strike(point, victim), way == "begin")
                happened[case] = state(root) | {"ends": ends}

    def spoil(root: Path) -> Path:
        Fault("published", 0, "flip")("published", step_dir(root, 2))
        return root

    acts = {
        "save": (lambda case: prepare(case, only=1), lambda root: save_dcp(tree(2), step_dir(root, 2))),
        "prune": (prepare, lambda root: prune(root, 1)),
        "aside": (lambda case: spoil(prepare(case)), lambda root: set_aside(newest_whole_together(root))),
    }
    for name, (make, act) in acts.items():
        n, killed = 0, True
        while killed:
            root = make(case := f"{name} at {n}")
            killed = killed_at(n, lambda act=act, root=root: act(root))
            happened[case] = state(root)
            if name != "aside":
                save_dcp(tree(3), step_dir(root, 3))
                prune(root, 1)
                happened[f"after {case}"] = state(root) | {"left": sorted(path.name for path in root.iterdir())}
            n += 1
    (folder / "killed.json").write_text(json.dumps(happened))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
