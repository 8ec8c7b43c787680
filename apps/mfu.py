"""Model FLOPs utilization (MFU): the share of a GPU's peak that training makes of it, in two accountings. Pure, but for
asking a device for its name.

The operations are those of the model (PaLM, Chowdhery et al., 2022, arXiv:2204.02311, appendix B), and the peak is that
of the data sheet: dense bf16, summed in fp32. `mfu` counts attention once: a token sees those of its document until
itself, windows or not. `mfu_full_square` counts it as if every token saw all of its row, which most trainers print.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import torch

PEAKS: Final[Mapping[tuple[str, ...], float]] = MappingProxyType(
    {
        ("GB200",): 2500,
        ("B200",): 2250,
        ("H200", "NVL"): 835,
        ("H200",): 989,
        ("GH200",): 989,
        ("H100", "NVL"): 835,
        ("H100", "PCIe"): 756,
        ("H100",): 989,
        ("A100",): 312,
        ("L40S",): 362,
        ("L4",): 121,
        ("4090",): 165,
    }
)
"""Of NVIDIA's data sheets, in 10^12 operations a second, by words of a GPU's name; the first that fits counts."""
_OTHERS: Final = {"MIG", "Laptop", "D"}
"""Words of GPUs that are less than what the others say."""


def find_peak(name: str) -> float | None:
    """10^12 operations a second of the GPU of this name at its best; None of one that is not known.

    >>> find_peak("NVIDIA H100 80GB HBM3"), find_peak("NVIDIA H100 PCIe"), find_peak("NVIDIA A100-SXM4-80GB")
    (989, 756, 312)
    >>> find_peak("NVIDIA H100 80GB HBM3 MIG 1g.10gb"), find_peak("NVIDIA H20")
    (None, None)
    """
    words = {*re.split(r"[\s-]+", name)}
    fits = (peak for known, peak in PEAKS.items() if words.issuperset(known))
    return None if words & _OTHERS else next(fits, None)


def peak_of(device: torch.device, dtype: torch.dtype) -> float | None:
    """As `find_peak`, of `device`; None where it computes in another dtype than that of the peak. Effect: asks it."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    return find_peak(torch.cuda.get_device_name(device))


def tell_mfu(tflops: float, tflops_full: float, peak: float | None) -> dict[str, float]:
    """The shares of `peak` that both counts of operations are; nothing where it is not known. Pure.

    >>> tell_mfu(395.6, 494.5, 989.0), tell_mfu(1.0, 2.0, None)
    ({'mfu': 0.4, 'mfu_full_square': 0.5}, {})
    """
    return {} if peak is None else {"mfu": tflops / peak, "mfu_full_square": tflops_full / peak}
