"""Parameters gathered and gradients exchanged by copies between the GPUs of a host, to measure what that gains.

    uv run benchmarks/copies.py --model qwen3-8b --seq-len 8192 --batch 2 --shard 2

It is apps/bench.py, with its flags, on a model whose ranks read from each other.

A collective of NCCL is a kernel, and takes multiprocessors from the products under which it runs. GPUs of one host can
read each other's memory, and their copy engines move it while all multiprocessors compute; a kernel of one block tells
the others that memory is ready, and another that it was read. `docs/log.md` says why no app does this.

Dimensions: P ranks of a group, n numbers that each of them keeps.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parent.parent / "apps"))

import bench
import request
from decision import Decision
from explain import explain_run
from measuring import decide_measured
from place import place
from preflight import start
from request_bench import TOLD, Config

from omni_mesh import Mesh
from omni_parallel.narrow import NarrowSum

M = TypeVar("M", bound=nn.Module)


def main(asked: Config) -> None:
    """Measure as `asked`. Effect: as of apps/bench.py."""
    bench.main(asked, place_copying)


def place_copying(config: request.Config, run: Decision, mesh: Mesh) -> PreTrainedModel:
    """What `place` makes of the model of `run`, whose ranks read from each other. Donates `run.model`."""
    return use_copies(place(config, run, mesh), run.dtype)


def use_copies(model: M, dtype: torch.dtype) -> M:
    """The same model, sharded with this dtype of compute, whose ranks read from each other. Donates `model`."""
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            unit.set_custom_all_gather(CopyGather())
            unit.set_custom_reduce_scatter(NarrowSum(dtype, empty=empty_shared, exchange=exchange_by_copies))
    return model


class CopyGather:
    """What FSDP2 gathers the parameters of a unit with. It has put this rank's into their place before."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Where they are gathered."""
        return empty_shared(size, dtype, device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        parts = output_tensor.chunk(group.size())
        assert not async_op and parts[group.rank()].data_ptr() == input_tensor.data_ptr()
        shared = _symmetric_memory().rendezvous(output_tensor, group)
        shared.barrier()
        for peer in others(group):
            n = len(parts[peer])
            parts[peer].copy_(shared.get_buffer(peer, (n,), output_tensor.dtype, peer * n))
        shared.barrier()


def exchange_by_copies(parts_Pn: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Read this rank's part of what each other has: (P, n), of which this rank's own is not filled."""
    shared = _symmetric_memory().rendezvous(parts_Pn, group)
    received_Pn = torch.empty_like(parts_Pn).unflatten(0, (group.size(), -1))
    n = received_Pn.shape[1]
    shared.barrier()
    for peer in others(group):
        received_Pn[peer].copy_(shared.get_buffer(peer, (n,), parts_Pn.dtype, group.rank() * n))
    shared.barrier()
    return received_Pn


def empty_shared(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that other GPUs of the host can read, from a pool of its own."""
    with torch.cuda.use_mem_pool(_symmetric_memory().get_mem_pool(device)):
        return torch.empty(*shape, dtype=dtype, device=device)


def others(group: dist.ProcessGroup) -> list[int]:
    """From the next rank on, so that no two read from one at once."""
    return [(group.rank() + step) % group.size() for step in range(1, group.size())]


def _symmetric_memory() -> Any:
    # Torch names this module as private, and documents it: it has no other way to memory that GPUs share.
    import torch.distributed._symmetric_memory as symmetric

    return symmetric


if __name__ == "__main__":
    start(main, decide_measured, Config, __doc__, told=TOLD, instead=explain_run)
