"""The kernels written in Triton, run by its interpreter on the CPU: what they give, put in a file.

TRITON_INTERPRET=1 python triton_main.py rows|loss IN OUT
"""

import sys
from typing import Any

import torch

from omni_models import triton_loss, triton_rows


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


if __name__ == "__main__":
    kind, source, target = sys.argv[1:]
    torch.save([{"rows": run_rows, "loss": run_loss}[kind](case) for case in torch.load(source)], target)
