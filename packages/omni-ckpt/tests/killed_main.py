"""Run as a script by `test_dcp.py`: saves and prunes that are killed at every step of the way, each in a fork.

    python killed_main.py FOLDER

For each, `FOLDER/killed.json` has the names that are left, the latest checkpoint, and the value that loads from it.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import omni_ckpt.dcp
import omni_ckpt.disk
from omni_ckpt import latest, load_dcp, prune, save_dcp, step_dir


def die(*_: object, **__: object) -> None:
    os._exit(9)


def killed(where: Callable[[], None], act: Callable[[], object]) -> None:
    """Do `act()` in another process, which ends without a last word when it comes to what `where()` replaced."""
    child = os.fork()
    if not child:
        where()
        act()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


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
    module = omni_ckpt.dcp
    for name in ("_write_tensors", "write_json", "publish"):
        root = folder / name
        save_dcp(tree(1), step_dir(root, 1))
        killed(lambda name=name: setattr(module, name, die), lambda root=root: save_dcp(tree(2), step_dir(root, 2)))
        happened[name] = state(root)
        save_dcp(tree(2), step_dir(root, 2))
        happened[f"after {name}"] = state(root)
    root = folder / "prune"
    for step in (1, 2):
        save_dcp(tree(step), step_dir(root, step))
    killed(lambda: setattr(shutil, "rmtree", die), lambda: prune(root, 1))
    happened["prune"] = state(root)
    step_dir(root, 1).with_suffix(".tmp").mkdir()
    prune(root, 1)
    happened["after prune"] = state(root)
    (folder / "killed.json").write_text(json.dumps(happened))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
