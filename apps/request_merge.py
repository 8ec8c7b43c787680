"""What `merge` may be asked for: a field is a flag, told by its docstring."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


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
    lora: Literal["keep", "merge"] = "keep"
    """Of a run with adapters. keep: write them as plain peft reads them, without the model. merge: take them up into
    the weights that they were trained beside."""
    base: str | None = None
    """With --lora merge: the directory or hub name of those weights. Left out: where they were read from."""
