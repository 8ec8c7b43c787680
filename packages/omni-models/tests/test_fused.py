"""Laws of the fused functions: the formula, its gradients, and that the kernels obey it and write into nothing else."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from fused_cases import by_functions, check, make_cases
from shapes import interpret

from omni_models.fused import make_triton

CASES = make_cases()


@pytest.mark.parametrize("case", [c for c in CASES if c["name"].endswith("float32")], ids=lambda case: case["name"])
def test_without_a_gpu_torch_computes_what_the_formula_says(case: dict) -> None:
    check(case, by_functions(case, make_triton(), "cpu"))


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_the_kernels_obey_the_formula_in_tritons_interpreter(tmp_path: Path) -> None:
    for case, found in zip(CASES, interpret("fused", CASES, tmp_path), strict=True):
        check(case, found, cuts_bf16=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_on_a_gpu_the_kernels_obey_the_formula(case: dict) -> None:
    check(case, by_functions(case, make_triton(), "cuda"))
