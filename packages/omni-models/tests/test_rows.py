"""Laws of the way from tokens to rows of experts and back: the formula, its gradients, and that the kernels obey it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shapes import interpret
from torch import Tensor

from omni_models.experts import sort_choices
from omni_models.rows import Routes, collect, silu_halves, spread

EXPERTS = 4
CASES = {
    "all here": (7, 3, 20, EXPERTS),
    "some elsewhere": (9, 2, 1030, 2),
    "none here": (5, 2, 8, 0),
    "some elsewhere, more set aside": (9, 2, 1030, 2),
    "none here, all set aside": (5, 2, 8, 0),
}
"""Tokens, choices, features, and how many of four experts are here."""
ROWS = ("spread", "gated", "d_rows", "d_both")
"""What has a row for each that is set aside."""


def make_case(name: str, dtype: torch.dtype) -> dict[str, Any]:
    T, K, H, here = CASES[name]
    random = torch.Generator().manual_seed(0)
    expert_TK = torch.rand(T, EXPERTS, generator=random).topk(K).indices
    used = int((expert_TK < here).sum())
    rows = T * K if "set aside" in name else used
    routes = sort_choices(expert_TK, here, rows)
    shapes = {
        "x": (T, H),
        "rows": (rows, H),
        "weights": (T, K),
        "d_out": (T, H),
        "both": (rows, 6),
        "d_gated": (rows, 3),
    }
    drawn = {key: torch.randn(shape, generator=random).to(dtype) for key, shape in shapes.items()}
    for key in ("rows", "both", "d_gated"):
        drawn[key][used:] = torch.nan  # What is not used holds anything.
    return drawn | {
        "used": routes.used,
        "place": routes.place_TK,
        "order": routes.order_R,
        "routes": routes,
        "expert": expert_TK,
        "here": here,
    }


def by_formula(case: dict[str, Any]) -> dict[str, Tensor]:
    """What each choice of each token adds, one by one, in fp64, and the gradients that autograd finds of it."""
    place, K, used = case["place"], case["place"].shape[1], case["used"]
    rows, both = (case[name][:used].double().requires_grad_() for name in ("rows", "both"))
    weights = case["weights"].double().requires_grad_()
    total, plain = torch.zeros(2, *case["d_out"].shape, dtype=torch.float64).unbind()
    for t, k in ((t, k) for t in range(len(place)) for k in range(K) if place[t, k] < used):
        total = total.index_add(0, torch.tensor([t]), (weights[t, k] * rows[place[t, k]])[None])
        plain = plain.index_add(0, torch.tensor([t]), rows[place[t, k]][None])
    gated = F.silu(both[:, :3]) * both[:, 3:]
    ends = [
        ((total + 0 * rows.sum()) * case["d_out"]).sum() + 0 * weights.sum(),
        (gated * case["d_gated"][:used]).sum(),
    ]
    d_rows, d_weights, d_both = torch.autograd.grad(sum(ends), (rows, weights, both))  # pyright: ignore[reportArgumentType]
    spread = case["x"].double()[case["order"][:used] // K]
    values = {"spread": spread, "sum": total, "plain sum": plain, "gated": gated}
    return {k: v.detach() for k, v in values.items()} | {"d_rows": d_rows, "d_weights": d_weights, "d_both": d_both}


def check(found: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    slack = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        # Of rows that are not used nobody says what they hold.
        have = found[name][: len(want)] if name in ROWS else found[name]
        assert have.shape == want.shape, name
        assert (have.cpu().double() - want).norm() <= slack * want.norm(), name


def by_functions(case: dict[str, Any], device: str) -> dict[str, Tensor]:
    """The same by `omni_models.rows`."""
    given = case["routes"]
    tensors = (x.to(device) for x in (given.order_R, given.place_TK, given.bounds_E1))
    routes = Routes(*tensors, full=given.full)
    rows, weights, both, x = (case[k].to(device).requires_grad_() for k in ("rows", "weights", "both", "x"))
    total, gated = collect(rows, weights, routes), silu_halves(both, routes.used)
    d_outs = [case["d_out"].to(device, total.dtype), case["d_gated"].to(device)]
    d_rows, d_weights, d_both = torch.autograd.grad([total, gated], [rows, weights, both], d_outs)
    # Spreading is the transpose of the plain sum.
    spread_out = spread(x, routes)
    (plain,) = torch.autograd.grad(spread_out, x, rows.detach())
    grads = {"d_rows": d_rows, "d_weights": d_weights, "d_both": d_both}
    values = {"spread": spread_out, "sum": total, "plain sum": plain, "gated": gated}
    return {name: value.detach() for name, value in values.items()} | grads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_rows_are_weighed_summed_and_gated_as_the_formula_says(name: str, dtype: torch.dtype) -> None:
    case = make_case(name, dtype)
    check(by_functions(case, "cpu"), by_formula(case), dtype)


def test_a_row_is_its_token() -> None:
    case = make_case("some elsewhere", torch.float32)
    rows = spread(case["x"], case["routes"])
    expected = [case["x"][t] for e in range(case["here"]) for t in range(9) if e in case["expert"][t]]
    assert torch.equal(rows, torch.stack(expected))


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_the_kernels_obey_the_formula_in_tritons_interpreter(tmp_path: Path) -> None:
    kinds = [(name, dtype) for name in CASES for dtype in (torch.float32, torch.bfloat16)]
    cases = [make_case(name, dtype) for name, dtype in kinds]
    keys = ("x", "rows", "weights", "place", "order", "used", "d_out", "both", "d_gated")
    given = [{key: case[key] for key in keys} for case in cases]
    for case, (_, dtype), found in zip(cases, kinds, interpret("rows", given, tmp_path), strict=True):
        check(found, by_formula(case), dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_the_kernels_obey_the_formula(name: str, dtype: torch.dtype) -> None:
    case = make_case(name, dtype)
    check(by_functions(case, "cuda"), by_formula(case), dtype)
