"""Triton without a GPU: its interpreter, in a process of its own, since it is chosen when Triton is imported; and its
compiler."""

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


def compile_ahead(kernel: Any, types: dict[str, str], constants: dict[str, Any]) -> str:
    """What `kernel` is on a Hopper GPU, where sizes divide by 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in types},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["ptx"]
