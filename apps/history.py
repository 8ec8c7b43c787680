"""What a run has left: rows of its steps, settings, and what its checkpoints say of it. Effect: reads files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from columns import Column, Table, read_table
from redact import plain_values, without_secrets
from strict_yaml import Items, Keys, Tree, read_yaml

from omni_ckpt import step_of, steps
from omni_ckpt.disk import read_json
from omni_ckpt.manifest import PLAIN_FILE

ROWS: Final = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class History:
    """One run."""

    path: Path
    label: str
    """What tells it from others."""
    told: Table
    """Its steps."""
    held_out: Table
    """Its evaluations."""
    skipped: Table
    """Its steps that changed nothing."""
    settings: Mapping[str, str]
    """Of config.yaml, by the names of flags, as they are written there."""
    model: str
    """As its newest checkpoint that can be read names it; empty without one."""
    mesh: Mapping[str, int]
    """As that tells it; empty without one."""
    checkpoints: tuple[int, ...]
    """The steps that they are of."""
    warnings: tuple[str, ...]
    """What somebody should know of it."""

    def where(self, steps: Column, axis: str) -> Column:
        """Where `steps` are on an axis: "step", "tokens", or "seconds" since the first step that is told, of training
        alone."""
        if axis == "step":
            return steps
        known = self.told.columns["step"]
        values = self.told.columns[axis]
        along = np.cumsum(np.nan_to_num(values)) if axis == "seconds" else values
        has = np.isfinite(along)
        return np.interp(steps, known[has], along[has])

    def is_drawn(self) -> bool:
        """Whether there is a step of it on a chart."""
        return any(map(len, (self.told, self.held_out, self.skipped)))

    def has(self, axis: str) -> bool:
        """Whether it tells of this axis."""
        return axis in self.told.names


def read_histories(paths: Sequence[Path]) -> list[History]:
    """The runs in `paths`, each with a label of its own.

    Raises:
        ValueError: with everything that is wrong with them: no folder, no run, one given twice, or no step told by any.
    """
    places = [path.absolute() for path in paths]
    wrong = [problem for path in paths if (problem := _find_wrong(path))]
    wrong += [f"{path} is given twice." for i, path in enumerate(paths) if path.resolve() in _real(paths[:i])]
    if wrong:
        raise ValueError("\n".join(wrong))
    found = [replace(read_history(path), label=label) for path, label in zip(paths, tails(places), strict=True)]
    if not any(len(one.told) for one in found):
        files = " and ".join(str(path / ROWS) for path in paths)
        words = "\n".join(line for one in found for line in one.told.damaged)
        raise ValueError(
            f"no step is told in {files}: a run tells of its first step when that is done.\n{words}".strip()
        )
    return found


def read_history(path: Path) -> History:
    """The run in `path`."""
    warnings: list[str] = []
    told, held_out, skipped = (read_table(path / name) for name in (ROWS, "eval.jsonl", "skipped.jsonl"))
    for name, table in ((ROWS, told), ("eval.jsonl", held_out), ("skipped.jsonl", skipped)):
        warnings += table.damaged
        if table.again:
            count, first, last = table.again
            warnings.append(f"{path / name} has {count} rows of steps {first} to {last} twice: the last counts.")
    settings = _read_settings(path / "config.yaml", warnings)
    model, mesh = "", dict[str, int]()
    found = steps(path)
    for newest in reversed(found):
        try:
            model, mesh = read_json(newest, PLAIN_FILE, _take_kind)
            break
        except ValueError as problem:
            warnings.append(str(problem))
    warnings += [*_tell_skips(skipped), *_tell_files(path)]
    saved = tuple(map(step_of, found))
    return History(path, path.name, told, held_out, skipped, settings, model, mesh, saved, tuple(warnings))


def _take_kind(content: Any) -> tuple[str, dict[str, int]]:
    """The model and the mesh of a run whose checkpoint says so. Pure. Raises as `read_json` expects of a wrong one."""
    about = content["plain"]["about"]
    mesh, model = dict(about.get("mesh", {})), about.get("config", {}).get("model", "")
    if not isinstance(model, str) or not all(isinstance(size, int) for size in mesh.values()):
        raise TypeError(f"model {model!r} on mesh {mesh!r}")
    return without_secrets(model), mesh


def tails(paths: Sequence[Path]) -> list[str]:
    """For each path its last name, and those before as far as another ends the same. Pure.

    >>> tails([Path("/runs/a/lr"), Path("/runs/b/lr"), Path("/runs/c")])
    ['a/lr', 'b/lr', 'c']
    """
    parts = [path.parts for path in paths]
    lengths = [
        next(n for n in range(1, len(own) + 1) if sum(other[-n:] == own[-n:] for other in parts) == 1 or n == len(own))
        for own in parts
    ]
    return ["/".join(own[-length:]).replace("//", "/") for own, length in zip(parts, lengths, strict=True)]


def _real(paths: Sequence[Path]) -> set[Path]:
    return {path.resolve() for path in paths}


def _find_wrong(path: Path) -> str:
    """Why there is no run in `path`; nothing if there is one."""
    if not path.exists():
        from names import nearest

        return f"there is no {path}{nearest(path)}."
    if not path.is_dir():
        return f"{path} is a file: give the folder of a run, which has a {ROWS}."
    if (path / ROWS).is_file() or (path / "config.yaml").is_file():
        return ""
    inside = sorted(str(row.parent) for row in path.glob(f"*/{ROWS}"))
    instead = f" Runs in it: {' '.join(inside[:20])}" if inside else ""
    return f"{path} is no run: it has no {ROWS}.{instead}"


def _read_settings(path: Path, warnings: list[str]) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        tree, wrong = read_yaml(path)
    except ValueError as problem:
        warnings.append(str(problem))
        return {}
    warnings += wrong
    return {name: _plain(name.split(".")[-1], words) for name, words in _flat(tree, "") if name != "version"}


def _plain(name: str, words: str) -> str:
    return str(plain_values({name: words})[name])


def _flat(tree: Tree, above: str) -> list[tuple[str, str]]:
    """Names of flags and what they are, in the order of a file. Pure."""
    if not isinstance(tree, Keys):
        return [(above, _words(tree))]
    return [pair for key, value in tree.items for pair in _flat(value, f"{above}.{key.text}" if above else key.text)]


def _words(tree: Tree) -> str:
    if isinstance(tree, Items):
        return " ".join(map(_words, tree.items))
    return " ".join(f"{key.text}={_words(value)}" for key, value in tree.items) if isinstance(tree, Keys) else tree.text


def _tell_skips(skipped: Table) -> list[str]:
    if not len(skipped):
        return []
    steps = [f"{step:,.0f}" for step in skipped.steps[:10]]
    more = f" and {len(skipped) - 10:,} more" if len(skipped) > 10 else ""
    which = f"step {steps[0]} was" if len(skipped) == 1 else f"{len(skipped):,} steps were"
    named = "" if len(skipped) == 1 else f": {', '.join(steps)}{more}"
    return [f"{which} skipped, as the loss or the gradient was not finite{named}."]


def _tell_files(path: Path) -> list[str]:
    """What lies in the folder of a run that is no good news."""
    told = [
        f"{one.name} was found damaged, and the run went on from one before."
        for one in sorted(path.glob("step-*.damaged*"))
    ]
    for one in sorted(path.glob("metrics-*.jsonl")):
        told.append(f"{one.name} has rows of a run that was in this folder before, and left no checkpoint.")
    errors = path / "errors.log"
    if errors.is_file():
        text = errors.read_text(errors="replace")
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
        when = re.findall(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d), process", text, re.MULTILINE)
        told.append(without_secrets(f"it ended with an error{f' at {when[-1]}' if when else ''}: {last}"))
    return told
