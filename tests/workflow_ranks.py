"""What each rank runs in `test_workflow.py`: a pool sends functions by the name of their module."""

import contextlib
import io
from pathlib import Path

import pretrain


def train_in(folder: Path, config: pretrain.Config) -> str:
    """What the app says while it trains in `folder`."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as out:
        pretrain.main(config)
    return out.getvalue()
