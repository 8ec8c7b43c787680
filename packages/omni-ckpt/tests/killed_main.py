"""Run as a script by `test_dcp.py`: saves and prunes that are killed at every step of the way, each in a fork.

    python killed_main.py FOLDER

For each, `FOLDER/killed.json` has the names that are left, the latest checkpoint, and the value that loads from it.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch

from omni_ckpt import Fault, begin_save_dcp, latest, load_dcp, prune, save_dcp, step_dir
from omni_ckpt.faults import Point


def killed(act: Callable[[], object]) -> None:
    """Do `act()` in another process, which is killed on the way."""
    child = os.fork()
    if not child:
        act()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def tree(step: int) -> dict:
    return {"model": {"weight": torch.full((3,), float(step))}, "step": step}


def state(root: Path) -> list:
    found = latest(root)
    assert found is not None
    loaded = load_dcp(tree(0), found)
    return [
        sorted(path.name for path in root.iterdir()),
        found.name,
        loaded["step"],
        loaded["model"]["weight"].tolist(),
    ]


def main(folder: Path) -> None:
    happened = {}
    for point in get_args(Point):
        for way in ("save", "begin"):
            case = f"{way} {point}"
            root = folder / case
            save_dcp(tree(1), step_dir(root, 1))
            fault = Fault(point, 0, "kill")
            if point == "pruned":
                save_dcp(tree(2), step_dir(root, 2))
                killed(lambda root=root, fault=fault: prune(root, 1, at=fault))
            else:
                save = save_dcp if way == "save" else lambda *args, **kwargs: begin_save_dcp(*args, **kwargs)()
                killed(lambda save=save, root=root, fault=fault: save(tree(2), step_dir(root, 2), at=fault))
            happened[case] = state(root)
            if latest(root) == step_dir(root, 1):
                save_dcp(tree(2), step_dir(root, 2))
            save_dcp(tree(3), step_dir(root, 3))
            prune(root, 2)
            happened[f"after {case}"] = state(root)
    (folder / "killed.json").write_text(json.dumps(happened))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
