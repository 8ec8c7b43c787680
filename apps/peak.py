"""What this machine makes of matrix products alone, which is what a training step is compared with."""

import time
from statistics import median
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

WIDE: Final = 8192
"""Rows and columns, in bf16, on a GPU."""
NARROW: Final = 1024
"""The same in fp32 on a CPU."""
WARM_S: Final = 1.0
"""For which products run before they count: a GPU lowers its clock under them until it is steady."""
REPEATS: Final = 30


def measure_matmul(device: torch.device, *, warm_s: float = WARM_S, repeats: int = REPEATS) -> float:
    """10^12 floating-point operations a second of a linear layer, the median. Effect: computes; leaves no memory held.

    Args:
        device: that computes.
        warm_s: seconds for which it does before it is measured.
        repeats: products that are measured.
    """
    on_gpu = device.type == "cuda"
    n = WIDE if on_gpu else NARROW
    how = {"device": device, "dtype": torch.bfloat16 if on_gpu else torch.float32}
    generator = torch.Generator(device).manual_seed(0)
    x_NN, weight_NN = (torch.randn(n, n, generator=generator, **how) for _ in range(2))
    began = time.perf_counter()
    while time.perf_counter() - began < warm_s:
        time_of(x_NN, weight_NN)
    rate = 2 * n**3 / median(time_of(x_NN, weight_NN) for _ in range(repeats)) / 1e12
    if on_gpu:
        del x_NN, weight_NN
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return rate


def time_of(x_NN: Tensor, weight_NN: Tensor) -> float:
    """Seconds of one product. Effect: waits for it."""
    if not x_NN.is_cuda:
        began = time.perf_counter()
        F.linear(x_NN, weight_NN)
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    F.linear(x_NN, weight_NN)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
