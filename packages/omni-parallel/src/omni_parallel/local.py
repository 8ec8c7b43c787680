"""This rank's part of a tensor, and whether kernels of Triton run on it."""

from functools import cache
from importlib.util import find_spec

from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of `tensor`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def fuses(*tensors: Tensor) -> bool:
    """Whether kernels of Triton run on such tensors."""
    return all(x.is_cuda and x.is_contiguous() and x.is_floating_point() for x in tensors) and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
