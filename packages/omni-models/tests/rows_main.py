"""The kernels of `omni_models.triton_rows`, run by Triton's interpreter on the CPU: what they give, put in a file.

TRITON_INTERPRET=1 python rows_main.py IN OUT
"""

import sys

import torch

from omni_models import triton_rows


def main(source: str, target: str) -> None:
    given = torch.load(source)
    found = []
    for case in given:
        rows, weights, place, order = (case[name] for name in ("rows", "weights", "place", "order"))
        d_weights = torch.zeros_like(weights, dtype=torch.float32)
        found.append(
            {
                "sum": triton_rows.sum_rows(rows, place, weights, torch.float32),
                "plain sum": triton_rows.sum_rows(rows, place, None, rows.dtype),
                "d_rows": triton_rows.grad_rows(case["d_out"], rows, weights, order, d_weights),
                "d_weights": d_weights,
                "gated": triton_rows.silu_halves(case["both"]),
                "d_both": triton_rows.grad_silu_halves(case["d_gated"], case["both"]),
            }
        )
    torch.save(found, target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
