"""Laws of the norm and of the sums, on one rank."""

import pytest
import torch
from toy import gradients, make_batch, make_toy, plan_toy

from omni_mesh.mesh import Mesh
from omni_parallel import clip_grads_, gather_objects, global_sum, shard_fsdp


@pytest.mark.parametrize("max_norm", [0.5, 1e9, float("inf")])
@pytest.mark.parametrize("sharded", [False, True])
def test_clipping_is_that_of_torch(mesh: Mesh, max_norm: float, sharded: bool) -> None:
    ours, theirs = make_toy(), make_toy()
    if sharded:
        ours = shard_fsdp(ours, mesh, plan_toy(), param_dtype=torch.float32)
    gradients(ours, make_batch())
    gradients(theirs, make_batch())
    norm = clip_grads_(ours, max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(expected.item(), rel=1e-6)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        grad = mine.grad.full_tensor() if sharded else mine.grad
        assert torch.allclose(grad, other.grad, rtol=1e-5)


def test_a_model_half_sharded_has_one_norm(mesh: Mesh) -> None:
    model, whole = make_toy(), make_toy()
    gradients(whole, make_batch())
    expected = torch.nn.utils.get_total_norm([param.grad for param in whole.parameters()])
    shard_fsdp(model.layers[0], mesh, plan_toy().__class__(blocks=()), param_dtype=torch.float32)
    gradients(model, make_batch())
    assert clip_grads_(model, float("inf")).item() == pytest.approx(expected.item(), rel=1e-6)


def test_parameters_without_a_gradient_do_not_count(mesh: Mesh) -> None:
    model = make_toy()
    assert clip_grads_(model, 1.0).item() == 0.0
    model.out.weight.grad = torch.full_like(model.out.weight, 2.0)
    assert clip_grads_(model, float("inf")).item() == pytest.approx(2.0 * 7**0.5)


def test_a_sum_leaves_its_input_alone(mesh: Mesh) -> None:
    x = torch.tensor([1, 2])
    total = global_sum(x)
    assert total.tolist() == [1, 2]
    total += 1
    assert x.tolist() == [1, 2]
    assert gather_objects({"a": 1}) == [{"a": 1}]
