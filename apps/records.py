"""Records of speed: what is kept of a run that measured itself, what made it, and whether it is worse than another."""

import json
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from os.path import relpath
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

ROOT: Final = Path(__file__).resolve().parent.parent
SLACK: Final = 0.05
"""The share by which two runs of the same may differ."""
SPEEDS: Final = ("tokens_per_second", "tokens_per_second_per_rank", "tflops_per_rank", "seconds", "data_seconds")


def summarize(rows: Sequence[Mapping[str, Any]], skip: int) -> dict[str, float]:
    """Medians over the steps after the first `skip`, and the peak memory of all. Pure.

    Raises:
        ValueError: if no step is left.
    """
    kept = rows[skip:]
    if not kept:
        raise ValueError(f"{len(rows)} steps are no more than the {skip} to skip: run longer, or give more data.")
    medians = {name: keep_digits(median(row[name] for row in kept)) for name in SPEEDS}
    most = {"data_seconds_most": keep_digits(max(row["data_seconds"] for row in kept))}
    return {"steps": len(kept), **medians, **most, "memory_gb": keep_digits(max(row["memory_gb"] for row in rows))}


def keep_digits(value: float) -> float:
    """`value` to six significant digits, so that a slow machine's is not 0. Pure."""
    return float(f"{value:.6g}")


def share_of_peak(rows: Sequence[Mapping[str, Any]], skip: int, matmul_tflops: float) -> dict[str, float]:
    """What matrix products alone make here, in 10^12 operations a second, and how much of it the steps do. Pure."""
    reached = median(row["tflops_per_rank"] for row in rows[skip:])
    return {"matmul_tflops": keep_digits(matmul_tflops), "share_of_matmul_peak": keep_digits(reached / matmul_tflops)}


def tell_towers(rows: Sequence[Mapping[str, Any]], towers: Sequence[float], skip: int) -> dict[str, float]:
    """Speed and time of towers, and their share of the operations and of the time of a step; nothing without. Pure.

    Args:
        rows: of metrics.
        towers: seconds in each of these steps.
        skip: first steps to leave out.
    """
    name = "tower_tflops_per_rank"
    kept = [(row, seconds) for row, seconds in zip(rows, towers, strict=False) if name in row][skip:]
    if not kept:
        return {}
    shares = [row[name] / (row[name] + row["tflops_per_rank"]) for row, _ in kept]
    return {
        name: keep_digits(median(row[name] for row, _ in kept)),
        "tower_seconds": keep_digits(median(seconds for _, seconds in kept)),
        "tower_share_of_operations": keep_digits(median(shares)),
        "tower_share_of_seconds": keep_digits(median(seconds / row["seconds"] for row, seconds in kept)),
    }


def compare(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """In what `now` is worse than `before` by more than `SLACK`, in words. Pure.

    Raises:
        ValueError: if they are not of the same, as `check_same` says.
    """
    check_same(now, before)
    speed, memory = "tokens_per_second_per_rank", "memory_gb"
    rules = ((speed, now[speed] < (1 - SLACK) * before[speed]), (memory, now[memory] > (1 + SLACK) * before[memory]))
    return [f"{name} is {now[name]:,.1f}, was {before[name]:,.1f}" for name, is_worse in rules if is_worse]


def check_same(now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Raises `ValueError` if `now` and `before`, each with its "gpu" and "command", do not measure the same. Pure."""
    if now["gpu"] != before["gpu"]:
        raise ValueError(f"the record is of {before['gpu']}, and this is {now['gpu']}: compare on the same.")
    new, old = (read_command(each["command"]) for each in (now, before))
    if other := sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name)):
        raise ValueError(
            f"the record is of something else ({', '.join(other)}): give its flags, or another --name.\n"
            f"it is of  {before['command']}\nthis is  {now['command']}"
        )


def read_command(command: str) -> dict[str, tuple[str, ...]]:
    """What `command` measures: its script, and the words of each flag but of those that say for how long, and where
    what was seen goes. Pure.

    >>> read_command("uv run apps/pretrain.py --steps 9 --batch=2 --seq_len 8 --offload --batch 4")
    {'the script': ('apps/bench.py',), '--batch': ('4',), '--seq-len': ('8',), '--offload': ()}
    """
    script, *words = shlex.split(command.removeprefix("uv run "))
    flags: dict[str, tuple[str, ...]] = {"the script": (_NOW.get(script, script),)}
    flag = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            flag = name.replace("_", "-")
            flags[flag] = (value,) if equals else ()
        else:
            flags[flag] = (*flags.get(flag, ()), word)
    return {flag: said for flag, said in flags.items() if flag not in _LEFT_OUT}


_NOW: Final[Mapping[str, str]] = {"benchmarks/bench.py": "apps/bench.py", "apps/pretrain.py": "apps/bench.py"}
"""What measures now what these did when records were made by them."""
_PLACES: Final = ("--name", "--to", "--note", "--commit", "--trace")
_LEFT_OUT: Final = (*_PLACES, "--check", "--no-check", "--steps", "--skip", "--profiled", "--profile-at")


def tell_making(argv: Sequence[str], note: str, commit: str) -> dict[str, Any]:
    """How to make a record again: the command, and what it ran on. Effect: asks the system."""
    return {
        "command": tell_command(argv),
        "note": note,
        "date": date.today().isoformat(),
        "commit": commit,
        "gpu": name_device(),
        "versions": {name: version(name) for name in ("torch", "transformers", "triton") if find_spec(name)}
        | {"cuda": torch.version.cuda},
    }


def tell_command(argv: Sequence[str]) -> str:
    """`argv` as it is typed from the root of the repository, without what says where its record goes. Effect: looks
    where this process is.

    >>> tell_command([f"{ROOT}/apps/bench.py", "--steps", "9", "--name", "a", "--note=b c", "--check"])
    'uv run apps/bench.py --steps 9'
    """
    script, *words = argv
    left: list[str] = []
    while words:
        word = words.pop(0)
        flag = word.split("=")[0]
        if flag in _PLACES:
            del words[: 0 if "=" in word else 1]
        elif flag not in ("--check", "--no-check"):
            left.append(word)
    return shlex.join(["uv", "run", relpath(script, ROOT), *left])


def name_device() -> str:
    """The GPU, or the processor. Effect: asks the system."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()


def ask(*command: str) -> str:
    """What `command` prints in the repository. Effect: runs a process.

    Raises:
        ValueError: if it fails.
    """
    try:
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as problem:
        raise ValueError(f"{shlex.join(command)} does not tell the commit of the code: give --commit.") from problem


def read_record(path: Path) -> dict[str, Any]:
    """The record at `path`. Effect: reads a file."""
    return json.loads(path.read_text())
