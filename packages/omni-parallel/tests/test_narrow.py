"""Laws of the sum over ranks; `tests/test_narrow.py` of the workspace holds them between ranks."""

from pathlib import Path

import pytest
import torch
from interpret import interpret
from torch import Tensor

from omni_parallel.narrow import sum_ranks_

CUDA = torch.cuda.is_available()
SIZES = [(1, 5), (2, 4099), (3, 2048), (8, 1)]
"""Ranks, and numbers that each keeps."""


def draw(ranks: int, numbers: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What others have sent, with anything where this rank's own would be, and its own."""
    random = torch.Generator().manual_seed(ranks)
    parts_Pn = (torch.randn(ranks, numbers, generator=random) * 10 ** torch.randn(ranks, 1, generator=random)).to(dtype)
    own_n = parts_Pn[rank].clone()
    parts_Pn[rank] = torch.nan
    return parts_Pn, own_n


def by_formula(received_Pn: Tensor, own_n: Tensor, rank: int) -> Tensor:
    """The sum in fp32, one rank after the other."""
    total_n = torch.zeros(len(own_n))
    for peer, part_n in enumerate(received_Pn):
        total_n = total_n + (own_n if peer == rank else part_n).float()
    return total_n


def cases() -> list[tuple[Tensor, Tensor, int]]:
    kinds = [(ranks, n, rank) for ranks, n in SIZES for rank in {0, ranks - 1}]
    return [(*draw(*kind, dtype), kind[2]) for kind in kinds for dtype in (torch.bfloat16, torch.float32)]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_it_is_in_the_order_of_ranks_and_in_the_digits_of_the_total(device: str) -> None:
    if device == "cuda" and not CUDA:
        pytest.skip("needs a CUDA device")
    for received_Pn, own_n, rank in cases():
        total_n = torch.full((len(own_n),), torch.nan, device=device)
        seen = total_n._version
        assert sum_ranks_(total_n, received_Pn.to(device), own_n.to(device), rank) is total_n
        assert torch.equal(total_n.cpu(), by_formula(received_Pn, own_n, rank))
        assert total_n._version > seen, "torch would take it for what it was"


def test_the_kernel_obeys_the_formula_in_tritons_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    found_of_all = interpret(Path(__file__).parent / "sum_main.py", cases(), tmp_path)
    for case, found in zip(cases(), found_of_all, strict=True):
        assert torch.equal(found, by_formula(*case))
