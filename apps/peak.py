"""What this machine makes of matrix products alone, which is what a training step is compared with."""

import time
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

WIDE: Final = 8192
"""Rows and columns, in bf16, on a GPU."""
NARROW: Final = 1024
"""The same in fp32 on a CPU."""
PAUSE_S: Final = 0.01
"""Between two products. A GPU lowers its clock under many in a row, to stay within its power, and that is not its peak:
an H200 makes 730 once, and 600 to 690 without end, whatever the library."""
REPEATS: Final = 30


def measure_matmul(device: torch.device, *, repeats: int = REPEATS) -> float:
    """10^12 floating-point operations a second of a linear layer, the fastest of some. Effect: computes; leaves no
    memory held.

    Args:
        device: that computes.
        repeats: products that are measured, after as many that are not.
    """
    on_gpu = device.type == "cuda"
    n = WIDE if on_gpu else NARROW
    how = {"device": device, "dtype": torch.bfloat16 if on_gpu else torch.float32}
    generator = torch.Generator(device).manual_seed(0)
    x_NN, weight_NN = (torch.randn(n, n, generator=generator, **how) for _ in range(2))
    seconds = [time_of(x_NN, weight_NN) for _ in range(2 * repeats)][repeats:]
    if on_gpu:
        del x_NN, weight_NN
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return 2 * n**3 / min(seconds) / 1e12


def time_of(x_NN: Tensor, weight_NN: Tensor) -> float:
    """Seconds of one product, after a pause. Effect: waits for it."""
    time.sleep(PAUSE_S)
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
