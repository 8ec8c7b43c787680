"""A rank's part of a tensor: what it holds, where that lies in the whole, and what of a whole tensor it would hold.

`compute_local_shape_and_global_offset` is torch's own arithmetic of shards, and private; `tests/test_weights.py` fails
if it moves.
"""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local(tensor: Tensor) -> Tensor:
    """The numbers that this rank holds; shares memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def share(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of `whole`, cut as `like` is. No communication."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()


def own_slices(tensor: Tensor) -> tuple[slice, ...]:
    """Where this rank's part lies in the whole tensor."""
    if not isinstance(tensor, DTensor):
        return tuple(slice(0, size) for size in tensor.shape)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
