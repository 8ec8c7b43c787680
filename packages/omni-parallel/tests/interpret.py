"""Triton's interpreter on the CPU: a process of its own, since it is chosen when Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


def interpret(main: Path, given: Any, folder: Path) -> Any:
    """What the script `main`, called with two files, makes of `given`; skips where the interpreter does not run."""
    torch.save(given, folder / "given")
    command = [sys.executable, str(main), str(folder / "given"), str(folder / "found")]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "only 0-dimensional arrays can be converted to Python scalars" in ran.stderr:
        pytest.skip("the interpreter of this Triton cannot count with this numpy")
    assert ran.returncode == 0, ran.stderr
    return torch.load(folder / "found")
