"""Runs of the apps in processes of their own, as a person or torchrun starts them."""

import io
import json
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

from ranks import start_warm

ROOT = Path(__file__).parent.parent
EXACT = ("step", "loss", "grad_norm", "lr")


def numbers(rows: list[dict[str, float]]) -> list[list[float]]:
    """What of each step is to be the same to the bit."""
    return [[row[name] for name in EXACT] for row in rows]


def rows_of(out: Path) -> list[dict[str, float]]:
    """The metrics of a run, a row a step."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def torchrun(ranks: int, *how: str) -> tuple[str, ...]:
    """What starts ranks of a script, after the interpreter and before the script."""
    how = ("--nproc-per-node", str(ranks), "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *how)
    return ("-m", "torch.distributed.run", *how)


def alone() -> dict[str, str]:
    """The environment of a process that is no rank."""
    return {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}


def run_script(
    script: Path, *words: str, folder: Path, warn: bool = True, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """How a script ends in `folder`, and what it says, in a process of its own that need not import what takes long.

    Without `warn` a warning is an error.
    """
    with TemporaryDirectory() as said:
        process = start_warm(_run_script, script, words, folder, Path(said), warn)
        process.join(timeout_s)
        if (code := process.exitcode) is None:
            process.kill()
            raise TimeoutError(f"{script} is not done after {timeout_s} s")
        out, err = ((Path(said) / name).read_text() for name in SAID)
    return subprocess.CompletedProcess([str(script), *words], code, out, err)


def run_as_rank(script: Path, words: Sequence[str], folder: Path) -> tuple[int, str, str]:
    """The code with which a script leaves that is run in `folder` on this rank, and what it says."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    with redirect_stdout(out), redirect_stderr(err), chdir(folder):
        sys.argv = [str(script), *words]
        try:
            runpy.run_path(str(script), run_name="__main__")
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
            err.write(left.code if isinstance(left.code, str) else "")
        finally:
            sys.argv = before
    return code, out.getvalue(), err.getvalue()


SAID = ("stdout", "stderr")


def _run_script(script: Path, words: Sequence[str], folder: Path, said: Path, warn: bool) -> None:
    """What the started process does. Effect: ends it."""
    for name, stream in zip(SAID, (sys.stdout, sys.stderr), strict=True):
        file = os.open(said / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, stream.fileno())
    os.chdir(folder)
    sys.argv = [str(script), *words]
    sys.path[0] = str(script.parent)
    if not warn:
        warnings.simplefilter("error")
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit:
        raise
    except BaseException:  # noqa: BLE001  As the interpreter does.
        sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]
        sys.exit(1)
