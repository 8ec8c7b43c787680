"""Laws of sharding, on one rank; `tests/test_parity.py` of the workspace holds them on many."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from toy import Toy, gradients, make_batch, make_toy, plan_toy

from omni_mesh import MeshConfig, join_world, make_mesh, resolve_mesh
from omni_mesh.mesh import Mesh
from omni_parallel import shard_fsdp
from omni_parallel.fsdp import apply_cast, cut_expert, shard_units

pytestmark = pytest.mark.filterwarnings("ignore:.*barrier.*:UserWarning")


def test_gradients_are_those_of_the_plain_model(mesh: Mesh) -> None:
    plain = gradients(make_toy(), make_batch())
    sharded = gradients(shard_units(make_toy(), mesh, plan_toy(), param_dtype=torch.float32), make_batch())
    assert plain.keys() == sharded.keys()
    for name, grad in sharded.items():
        assert isinstance(grad, DTensor)
        assert torch.allclose(grad.full_tensor(), plain[name], rtol=1e-6), name


def test_every_planned_block_is_a_unit_and_every_parameter_a_dtensor(mesh: Mesh) -> None:
    model = shard_units(make_toy(), mesh, plan_toy(), param_dtype=torch.bfloat16)
    units = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
    assert units == ["", "layers.0", "layers.1", "layers.2", "out"]
    assert all(isinstance(param, DTensor) and param.dtype == torch.float32 for param in model.parameters())


def test_a_rank_alone_has_no_units_and_plain_parameters_with_the_gradients_of_the_plain_model(mesh: Mesh) -> None:
    model = shard_fsdp(make_toy(), mesh, plan_toy(), param_dtype=torch.float32)
    assert not [module for module in model.modules() if isinstance(module, FSDPModule)]
    assert not [param for param in model.parameters() if isinstance(param, DTensor)]
    plain, alone = gradients(make_toy(), make_batch()), gradients(model, make_batch())
    assert plain.keys() == alone.keys() and all(torch.equal(alone[name], plain[name]) for name in plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:.*barrier.*:UserWarning")
def test_a_rank_alone_has_its_model_on_its_device() -> None:
    with join_world(device="cuda") as world:
        mesh = make_mesh(resolve_mesh(MeshConfig(), 1), device_type="cuda")
        model = shard_fsdp(make_toy(), mesh, plan_toy())
        assert {x.device for x in (*model.parameters(), *model.buffers())} == {world.device}
        assert model(make_batch().to(world.device)).dtype == torch.bfloat16
        with torch.device("meta"):
            assert all(param.is_meta for param in shard_fsdp(Toy(), mesh, plan_toy()).parameters())


@pytest.mark.parametrize("shard", [shard_units, shard_fsdp])
def test_compute_is_in_the_dtype_asked_for(mesh: Mesh, shard: Callable[..., Toy]) -> None:
    out = shard(make_toy(), mesh, plan_toy(), param_dtype=torch.bfloat16)(make_batch())
    assert out.dtype == torch.bfloat16


class Scales(nn.Module):
    """What experts are: parameters of its own, seen by its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 1 + 2**-12]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != self.scale.dtype:
            raise ValueError("other dtypes")
        return x * self.scale


def test_a_call_sees_parameters_in_the_dtype_asked_for_and_gradients_stay_in_it_till_they_add_up() -> None:
    module = Scales()
    param = module.scale
    apply_cast(module, torch.bfloat16)
    out = module(torch.ones(2, dtype=torch.bfloat16))
    assert out.tolist() == [1.0, 1.0], "what bf16 knows of the second"
    first, second = torch.tensor([1.0, 2.0]).bfloat16(), torch.tensor([2**-9, 2**-9]).bfloat16()
    (out * first).sum().backward()
    assert param.grad is not None and param.grad.dtype == torch.bfloat16
    assert param.grad.tolist() == [1.0, 2.0]
    for times in (1, 2):
        (module(torch.ones(2, dtype=torch.bfloat16)) * second).sum().backward()
        assert param.grad.dtype == torch.float32
        assert param.grad.tolist() == [1 + times * 2**-9, 2 + times * 2**-9], "bf16 would lose what comes later"
    with pytest.raises(ValueError, match="other dtypes"):
        module(torch.ones(2))
    assert module.scale is param
    assert dict(module.named_parameters()) == {"scale": param}


def test_experts_are_cut_along_the_last_dim_that_divides_and_never_along_the_first() -> None:
    assert cut_expert(2, nn.Parameter(torch.empty(4, 4, 6))) == Shard(2)
    assert cut_expert(2, nn.Parameter(torch.empty(4, 4, 5))) == Shard(1)
    assert cut_expert(2, nn.Parameter(torch.empty(4, 6))) == Shard(1)
