"""The linters and the type checker find nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "pyright"])
def test_nothing_is_found_by(command: str) -> None:
    program, *rest = command.split()
    done = subprocess.run([sys.executable, "-m", program, *rest], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
