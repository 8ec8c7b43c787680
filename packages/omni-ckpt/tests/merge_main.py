"""Run as a script by `test_hf.py`: merges that are killed at every line and in the midst of every file, each in a fork.

    python merge_main.py FOLDER

`FOLDER/merges.json` has for each what is there under the name of the model, and under the temporary one, and whether
the next merge is whole.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import omni_ckpt.disk
import omni_ckpt.hf
from omni_ckpt import merge_to_hf, save_dcp

INDEX = "model.safetensors.index.json"
FILES = (omni_ckpt.hf.__file__, omni_ckpt.disk.__file__)
MODEL = {f"layers.{i}.weight": torch.full((8, 4), float(i)) for i in range(5)}
SIZES = {"one file": 1 << 30, "three files": 300}


def merge(folder: Path, size: str) -> None:
    merge_to_hf(folder / "source", folder / "hf", max_bytes=SIZES[size])


def kill_at_line(n: int) -> None:
    """Have this process killed before it first runs the n-th line of a merge after the directory is made."""
    seen: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        line = frame.f_code.co_filename, frame.f_lineno
        if event == "line" and line[0] in FILES and line not in seen and made:
            seen.add(line)
            if len(seen) > n:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    def mkdir(path: Path, *args: Any, **kwargs: Any) -> None:
        own_mkdir(path, *args, **kwargs)
        made.append(path)

    made: list[Path] = []
    own_mkdir, Path.mkdir = Path.mkdir, mkdir  # pyright: ignore[reportAttributeAccessIssue]
    sys.settrace(trace)


def kill_in_file(n: int) -> None:
    """Have this process killed in the midst of the n-th file of tensors."""
    left, save_file = [n], omni_ckpt.hf.save_file

    def save_half(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, file, metadata)
        left[0] -= 1
        if left[0] < 0:
            os.truncate(file, file.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    omni_ckpt.hf.save_file = save_half


def was_killed(act: Callable[[], object]) -> bool:
    """Do `act()` in another process; whether it was killed on the way."""
    child = os.fork()
    if not child:
        act()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def what_is_there(path: Path) -> str:
    """How much of a model a loader finds: it opens the file, or those that an index names."""
    index = path / INDEX
    if not index.exists() and not (path / "model.safetensors").exists():
        return "nothing"
    names = json.loads(index.read_text())["weight_map"].values() if index.exists() else ["model.safetensors"]
    try:
        found = {name: tensor for file in set(names) for name, tensor in load_file(path / file).items()}
    except (SafetensorError, FileNotFoundError):
        return "half"
    return "whole" if found.keys() == MODEL.keys() and all(torch.equal(found[n], MODEL[n]) for n in MODEL) else "half"


def main(folder: Path) -> None:
    happened = {}
    save_dcp({"state": {"model": MODEL}}, folder / "source")
    for size in SIZES:
        for way in (kill_at_line, kill_in_file):
            n, goes_on = 0, True
            while goes_on:
                for path in (folder / "hf", folder / "hf.tmp"):
                    shutil.rmtree(path, ignore_errors=True)

                def act(way: Any = way, n: int = n, size: str = size) -> None:
                    way(n)
                    merge(folder, size)

                goes_on = was_killed(act)
                there = [what_is_there(folder / "hf"), what_is_there(folder / "hf.tmp")]
                if there[0] == "nothing":
                    merge(folder, size)
                left = sorted(path.name for path in folder.iterdir() if path.name.startswith("hf"))
                happened[f"{size}, {way.__name__} {n}"] = [*there, what_is_there(folder / "hf"), left]
                n += 1
    (folder / "merges.json").write_text(json.dumps(happened))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
