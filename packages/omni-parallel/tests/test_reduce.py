"""Laws of the norm and of the sums, on one rank."""

from collections.abc import Callable

import pytest
import torch
from toy import Toy, gradients, make_batch, make_toy, plan_toy

from omni_mesh.mesh import Mesh
from omni_parallel import (
    AdamWConfig,
    clip_grads_,
    clip_scale,
    constant,
    gather_objects,
    global_sum,
    grad_norm,
    init_state,
    shard_fsdp,
    update,
)
from omni_parallel.fsdp import shard_units


@pytest.mark.parametrize("max_norm", [0.5, 1e9, float("inf")])
@pytest.mark.parametrize("sharded", [False, True])
def test_clipping_is_that_of_torch(mesh: Mesh, max_norm: float, sharded: bool) -> None:
    ours, theirs = make_toy(), make_toy()
    if sharded:
        ours = shard_units(ours, mesh, plan_toy(), param_dtype=torch.float32)
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
    shard_units(model.layers[0], mesh, plan_toy().__class__(blocks=()), param_dtype=torch.float32)
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_squares_of_any_dtype_are_summed_in_fp32_at_least(mesh: Mesh, dtype: torch.dtype) -> None:
    model = make_toy().to(dtype)
    gradients(model, make_batch().to(dtype))
    exact = torch.cat([param.grad.flatten().double() for param in model.parameters()]).norm()
    assert grad_norm(model).item() == pytest.approx(exact.item(), rel=1e-6)


def test_a_factor_while_gradients_are_read_is_clipping(mesh: Mesh) -> None:
    clipped, scaled = (init_state(make_toy(), AdamWConfig()) for _ in range(2))
    for state in (clipped, scaled):
        gradients(state.model, make_batch())
    clip_grads_(clipped.model, 0.5)
    norm = grad_norm(scaled.model)
    clipped = update(clipped, constant(1.0))
    scaled = update(scaled, constant(1.0), scale=clip_scale(norm, 0.5))
    for mine, other in zip(scaled.model.parameters(), clipped.model.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-6)


@pytest.mark.parametrize("shard", [shard_units, shard_fsdp])
def test_an_evaluation_before_the_update_changes_nothing(mesh: Mesh, shard: Callable[..., Toy]) -> None:
    """It leaves parameters gathered, which show no gradient and would stay what they were."""
    plain, evaluated = (shard(make_toy(), mesh, plan_toy(), param_dtype=torch.float32) for _ in range(2))
    found = []
    for model in (plain, evaluated):
        state = init_state(model, AdamWConfig())
        gradients(model, make_batch())
        if model is evaluated:
            with torch.no_grad():
                model.eval()(make_batch())
            model.train()
        norm = grad_norm(model)
        state = update(state, constant(0.1))
        with torch.no_grad():
            found.append((norm.item(), state.model.eval()(make_batch())))
    assert found[0][0] == found[1][0] > 0
    assert torch.equal(found[0][1], found[1][1])
