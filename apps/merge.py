"""Turn a checkpoint into a directory that plain transformers loads.

    uv run apps/merge.py runs/pretrain --to runs/pretrain/merged
    uv run apps/merge.py runs/pretrain --to merged --step 100 --dtype bfloat16

The run is left as it is.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

import torch
import tyro
from places import URL
from preflight import run
from redact import without_secrets

from omni_ckpt import as_place, latest, merge_to_hf, step_dir, step_of, steps
from omni_models import build_model, hf_keys, read_config


@dataclass(frozen=True, slots=True)
class Config:
    """Which checkpoint to merge, and into what."""

    run: tyro.conf.Positional[Path]
    """Directory of the run: the --out of its training."""
    to: Path
    """Directory to write; it must not exist, or be empty."""
    checkpoints: str | None = None
    """Where the checkpoints are: the --save-to of the training. Left out: in the directory of the run."""
    step: int | None = None
    """Step of the checkpoint. Left out: the newest."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights written. Left out: as trained."""


def main(config: Config) -> None:
    """Write `config.to`. Effect: reads a checkpoint, writes safetensors, configuration and tokenizer.

    Raises:
        ValueError: if the run, the checkpoint or the model is not one that can be merged.
    """
    assets = config.run / "model"
    if not (assets / "config.json").is_file():
        raise ValueError(f"{config.run} is not the directory of a run: it has no model/config.json.")
    root = as_place(config.checkpoints or config.run)
    source = choose(root, config.step)
    check_free(config.to)
    to_hf = hf_keys(build_model(read_config(str(assets)), device="meta"))
    others = [str(step_of(path)) for path in steps(root) if path.name != source.name]
    another = f"--step chooses another: {', '.join(others)}" if others else ""
    try:
        merge_to_hf(source, config.to, to_hf=to_hf, dtype=getattr(torch, config.dtype) if config.dtype else None)
    except ValueError as problem:
        raise ValueError(f"{problem}\n{another}".rstrip()) from problem
    add_assets(assets, config.to, config.dtype)
    more = f" ({another})" if another and config.step is None else ""
    said = '--chat --prompt "Hello"' if (config.to / "chat_template.jinja").is_file() else '--prompt "The "'
    print(without_secrets(f"{source}{more} is merged. Try: uv run apps/infer.py {config.to} {said}"))


def add_assets(assets: Path, to: Path, dtype: str | None) -> None:
    """Put what is in `assets` beside the weights in `to`, and say that these are of `dtype`. Effect: writes.

    The configuration, without which nothing loads the directory, comes last and whole.
    """
    for file in assets.iterdir():
        if file.name != "config.json":
            shutil.copy(file, to)
    shutil.copy(assets / "config.json", part := to / "config.json.tmp")
    if dtype:
        part.write_text(json.dumps(json.loads(part.read_text()) | {"dtype": dtype}, indent=2) + "\n")
    part.rename(to / "config.json")


def choose(root: Path, step: int | None) -> Path:
    """The checkpoint under `root` of `step`, or the newest. Effect: looks for it.

    Raises:
        ValueError: if there is none.
    """
    there = [str(step_of(path)) for path in steps(root)]
    source = latest(root) if step is None else step_dir(root, step)
    if source is None or str(step_of(source)) not in there:
        wanted = "" if source is None else f" {source.name}"
        choice = f"there are those of steps {', '.join(there)}: choose with --step" if there else "there is none at all"
        raise ValueError(f"{root} has no checkpoint{wanted}; {choice}.")
    return source


def check_free(to: Path) -> None:
    """Raises `ValueError` if `to` is taken, a URL, or where nothing can be written. Effect: makes its parent, and for a
    moment a file there."""
    if URL.match(str(to)):
        raise ValueError(f"--to {to} is a URL, and a model is written to a disk: give a directory, and copy it then.")
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise ValueError(f"{to} is taken, and a model is never overwritten. Delete it or choose another --to.")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=to.parent):
            pass
    except OSError as problem:
        raise ValueError(
            f"--to {to} cannot be made: {to.parent}: {problem.strerror}. Choose a place where you may write, or get "
            "the right to write there."
        ) from problem


if __name__ == "__main__":
    run(main, Config, __doc__)
