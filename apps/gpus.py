"""GPUs and the links between them, as data. Speeds are what training gets of them, not what a data sheet says."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of a node. Speeds are in 10^12 operations a second, or 10^9 bytes a second in one direction."""

    memory: float
    """Bytes that a process can allocate."""
    products: float
    """Of bf16 matrix products that are large, beside the time that it takes to read and write them."""
    narrow: float | None
    """Of products of 8-bit floats; None if it has none."""
    attention: tuple[float, float]
    """Of flash attention, forward and backward, of rows that are very long."""
    half_row: float
    """Tokens of a document at which attention is half as fast as that."""
    bandwidth: float
    """Of its memory."""
    link: float
    """To the other GPUs of its node."""
    host_link: float
    """To the memory of the host."""
    capability: tuple[int, int]
    measured: bool
    """Whether predictions were compared with runs on it; if not, speeds are scaled by those of data sheets."""


# H200: products, attention, bandwidth and links are fitted on the records of benchmarks/ (see docs/plan.md). Memory is
# what torch.cuda.mem_get_info tells of an empty one.
_H200: Final = Gpu(
    memory=150.1e9,
    products=725,
    narrow=1350,
    attention=(675, 608),
    half_row=1930,
    bandwidth=4100,
    link=330,
    host_link=55,
    capability=(9, 0),
    measured=True,
)
GPUS: Final[Mapping[str, Gpu]] = MappingProxyType(
    {
        "h200": _H200,
        # NVIDIA H100 SXM5 data sheet: the same products and NVLink as H200, 3.35 TB/s of 80 GB instead of 4.8 of 141.
        "h100": Gpu(84.9e9, 725, 1350, (675, 608), 1930, 2860, 330, 55, (9, 0), False),
        # NVIDIA A100 80GB SXM data sheet: 312 TFLOP/s in bf16 of the 989 of H200, 2.04 TB/s of 4.8, NVLink 600 GB/s of
        # 900, PCIe 4. FlashAttention-2 reaches 230 and 200 of its products (Dao, 2023, arXiv:2307.08691).
        "a100-80": Gpu(84.9e9, 229, None, (215, 190), 1930, 1740, 220, 25, (8, 0), False),
        # NVIDIA HGX B200 data sheet: 2,250 TFLOP/s in dense bf16, 8 TB/s of 180 GB, NVLink 1,800 GB/s.
        "b200": Gpu(191.0e9, 1650, 3070, (1400, 1150), 1930, 6830, 660, 55, (10, 0), False),
    }
)
"""By name."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes of GPUs. Bytes a second in one direction; seconds."""

    gpu: Gpu
    node: int = 8
    """GPUs of a node."""
    net: float = 50e9
    """Of each GPU, to other nodes."""
    link_hop: float = 3e-6
    """What each further rank of a node adds to a collective, however little it carries."""
    net_hop: float = 8e-6
    """What each further node adds."""


def find_gpu(name: str) -> Gpu:
    """The GPU of that name. Raises `ValueError` if there is none, with those that there are."""
    if name in GPUS:
        return GPUS[name]
    near = get_close_matches(name.lower(), GPUS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"--gpu {name}: no GPU of that name is known.{hint} There are {', '.join(GPUS)}.")
