"""Laws of sharding, on one rank; `tests/test_parity.py` of the workspace holds them on many."""

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from toy import gradients, make_batch, make_toy, plan_toy

from omni_mesh.mesh import Mesh
from omni_parallel import shard_fsdp
from omni_parallel.fsdp import cut_expert

pytestmark = pytest.mark.filterwarnings("ignore:.*barrier.*:UserWarning")


def test_gradients_are_those_of_the_plain_model(mesh: Mesh) -> None:
    plain = gradients(make_toy(), make_batch())
    sharded = gradients(shard_fsdp(make_toy(), mesh, plan_toy(), param_dtype=torch.float32), make_batch())
    assert plain.keys() == sharded.keys()
    for name, grad in sharded.items():
        assert isinstance(grad, DTensor)
        assert torch.allclose(grad.full_tensor(), plain[name], rtol=1e-6), name


def test_every_planned_block_is_a_unit_and_every_parameter_a_dtensor(mesh: Mesh) -> None:
    model = shard_fsdp(make_toy(), mesh, plan_toy())
    units = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
    assert units == ["", "layers.0", "layers.1", "layers.2"]
    assert all(isinstance(param, DTensor) and param.dtype == torch.float32 for param in model.parameters())


def test_compute_is_in_the_dtype_asked_for(mesh: Mesh) -> None:
    out = shard_fsdp(make_toy(), mesh, plan_toy(), param_dtype=torch.bfloat16)(make_batch())
    assert out.dtype == torch.bfloat16


def test_experts_are_cut_along_the_last_dim_that_divides_and_never_along_the_first() -> None:
    assert cut_expert(2, nn.Parameter(torch.empty(4, 4, 6))) == Shard(2)
    assert cut_expert(2, nn.Parameter(torch.empty(4, 4, 5))) == Shard(1)
    assert cut_expert(2, nn.Parameter(torch.empty(4, 6))) == Shard(1)
