"""Look at a checkpoint, or at all of a run: reads files, loads and runs nothing, needs no GPU.

    uv run apps/checkpoint.py verify runs/pretrain                     is every file what was written?
    uv run apps/checkpoint.py inspect runs/pretrain/step-00000100      what is in it, and which run wrote it?
    uv run apps/checkpoint.py inspect runs/pretrain --json             a JSON object a line

Exits with 0 if all are whole, with 1 if one is not. `verify` reads every file; `inspect` looks at their sizes.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from preflight import run
from redact import plain_values, without_secrets

from omni_ckpt import Contents, Report, as_place, inspect, is_there, steps, verify


@dataclass(frozen=True, slots=True)
class Looked:
    """What to look at, and for whom."""

    path: tyro.conf.Positional[str]
    """A checkpoint, or the directory of a run, of which all are meant; URLs are understood."""
    json: bool = False
    """Tell it to a program."""


@dataclass(frozen=True, slots=True)
class Verify(Looked):
    """Is every file what was written?"""


@dataclass(frozen=True, slots=True)
class Inspect(Looked):
    """What is in it, and which run wrote it?"""


Config = Annotated[Verify, tyro.conf.subcommand("verify")] | Annotated[Inspect, tyro.conf.subcommand("inspect")]


def main(config: Looked) -> None:
    """Print what is asked of each checkpoint. Effect: reads; exits with 1 if something is wrong.

    Raises:
        ValueError: if there is no checkpoint.
    """
    root = as_place(config.path)
    if not is_there(root):
        raise ValueError(f"there is no {config.path}.")
    whole = True
    for path in steps(root) or (root,):
        found = attempt(verify if isinstance(config, Verify) else inspect, path)
        whole &= not found.problems
        print(json.dumps(as_plain(found)) if config.json else without_secrets(tell(found)), flush=True)
    if not whole:
        sys.exit(1)


def attempt(look: Callable[[Path], Report | Contents], path: Path) -> Report | Contents:
    """What `look` finds; of a checkpoint that cannot be read, that."""
    try:
        return look(path)
    except ValueError as problem:
        if not path.name.startswith("step-"):
            raise
        return Report(path, 0, 0, (str(problem),))


def tell(found: Report | Contents) -> str:
    """What was found in words, a line for each problem. Pure."""
    state = "damaged" if found.problems else "whole"
    problems = [f"  {problem}" for problem in found.problems]
    if isinstance(found, Report):
        strange = [f"  {file}, which is no damage" for file in found.strange]
        told = f"{found.path}: {state}, {found.files} files, {found.nbytes / 1e6:,.1f} MB"
        return "\n".join([told, *problems, *strange])
    about: Mapping[str, Any] = found.plain.get("about", {})
    facts = {
        "tensors": f"{len(found.tensors)}, {found.params:,} elements, {found.nbytes / 1e6:,.1f} MB",
        "step": found.plain.get("state", {}).get("step"),
        "tokens": about.get("tokens"),
        "metrics": about.get("metrics"),
        "mesh": " x ".join(f"{axis} {size}" for axis, size in about.get("mesh", {}).items() if size > 1) or "one rank",
        "versions": about.get("versions"),
        "model": about.get("config", {}).get("model"),
    }
    files = [f"  {name:<16} {seal.size:>14,} bytes  {seal.digest}" for name, seal in found.files.items()]
    tensors = [
        f"  {str(spec.dtype).removeprefix('torch.'):<9} {'x'.join(map(str, spec.shape)) or 'scalar':<16} {name}"
        for name, spec in found.tensors.items()
    ]
    lines = [f"  {name:<9} {as_words(value)}" for name, value in facts.items() if value is not None]
    return "\n".join([f"{found.path}: {state} at first sight", *problems, *lines, *files, *tensors])


def as_words(value: Any) -> str:
    """A value, or names and values, in one line. Pure."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {as_words(item)}" for name, item in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def as_plain(found: Report | Contents) -> dict[str, Any]:
    """What was found as values of JSON, without secrets. Pure."""
    plain = asdict(found) | {"path": str(found.path)}
    if isinstance(found, Contents):
        plain["tensors"] = {
            name: {"shape": spec.shape, "dtype": str(spec.dtype).removeprefix("torch.")}
            for name, spec in found.tensors.items()
        }
    return plain_values(plain)


if __name__ == "__main__":
    run(main, Config, __doc__)  # pyright: ignore[reportArgumentType] tyro takes unions, too.
