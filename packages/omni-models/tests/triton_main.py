"""The kernels written in Triton, run by its interpreter on the CPU: what they give, put in a file.

TRITON_INTERPRET=1 python triton_main.py rows|loss|fused|model IN OUT
"""

import sys
from functools import partial
from typing import Any

import torch
from fused_cases import by_functions
from torch import Tensor

from omni_models import triton_loss, triton_rows
from omni_models.fused import Kernels, make_triton
from omni_models.gated import ActMul
from omni_models.rms_norm import RMSNorm
from omni_models.rotate import Rotate


def run_rows(case: dict[str, Any]) -> dict[str, Any]:
    rows, weights, place, order, used = (case[name] for name in ("rows", "weights", "place", "order", "used"))
    d_weights = torch.zeros_like(weights, dtype=torch.float32)
    return {
        "spread": triton_rows.spread(case["x"], order, used, place.shape[1]),
        "sum": triton_rows.sum_rows(rows, place, used, weights, torch.float32),
        "plain sum": triton_rows.sum_rows(rows, place, used, None, rows.dtype),
        "d_rows": triton_rows.grad_rows(case["d_out"], rows, weights, order, used, d_weights),
        "d_weights": d_weights,
        "gated": triton_rows.silu_halves(case["both"], used),
        "d_both": triton_rows.grad_silu_halves(case["d_gated"], case["both"], used),
    }


def run_loss(case: dict[str, Any]) -> dict[str, Any]:
    grad, kept = case["logits"].clone(), case["logits"].clone()
    scaled = case["logits"].clone()
    seen = scaled._version
    triton_loss.scale_(scaled, torch.tensor(3.0))
    assert scaled._version > seen, "torch would take it for what it was"
    return {
        "scaled": scaled,
        "loss": triton_loss.cross_entropy_(grad, case["labels"], grads=True),
        "grad": grad,
        "loss alone": triton_loss.cross_entropy_(kept, case["labels"], grads=False),
        "kept": kept,
    }


def make_interpreted() -> Kernels:
    """The kernels themselves, which otherwise leave tensors on the CPU to torch."""

    def rms_norm(x: Tensor, weight_H: Tensor, eps: float, offset: float, casting: str) -> Tensor:
        return RMSNorm.apply(x, weight_H, eps, offset, casting == "llama")

    silu_mul, gelu_mul = (partial(lambda act, gate, up: ActMul.apply(gate, up, act), act) for act in (False, True))
    return Kernels(rms_norm, silu_mul, gelu_mul, Rotate.apply, make_triton().silu_halves)


def run_fused(case: dict[str, Any]) -> dict[str, Any]:
    return by_functions(case, make_interpreted(), "cpu")


def run_model(case: dict[str, Any]) -> dict[str, Any]:
    from test_kernels import apply_kernels, make_model, recompute, run

    model = apply_kernels(make_model(case["family"]), make_interpreted())
    logits, grads = run(recompute(model, case["keep_products"]))
    return {"logits": logits, "grads": grads}


if __name__ == "__main__":
    kind, source, target = sys.argv[1:]
    run = {"rows": run_rows, "loss": run_loss, "fused": run_fused, "model": run_model}[kind]
    torch.save([run(case) for case in torch.load(source)], target)
