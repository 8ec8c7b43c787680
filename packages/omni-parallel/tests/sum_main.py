"""The kernel that sums over ranks, run by Triton's interpreter on the CPU: what it gives, put in a file.

TRITON_INTERPRET=1 python sum_main.py IN OUT
"""

import sys

import torch

from omni_parallel import triton_sum

if __name__ == "__main__":
    source, target = sys.argv[1:]
    cases = torch.load(source)
    totals = [torch.full((len(own_n),), torch.nan) for _, own_n, _ in cases]
    torch.save([triton_sum.sum_ranks_(total_n, *case) for total_n, case in zip(totals, cases, strict=True)], target)
