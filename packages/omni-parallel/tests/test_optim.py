"""Laws of the training state."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from toy import Toy, gradients, make_batch, make_toy, plan_toy

from omni_mesh.mesh import Mesh
from omni_parallel import (
    AdamWConfig,
    constant,
    init_state,
    named_tensors,
    restore_state,
    state_tree,
    update,
)
from omni_parallel.fsdp import shard_units
from omni_parallel.optim import TrainState, group_params

CONFIG = AdamWConfig(lr=0.01, weight_decay=0.1)
NARROW = replace(CONFIG, state_dtype="bfloat16")


def train(state: TrainState, steps: int) -> TrainState:
    for _ in range(steps):
        gradients(state.model, make_batch())
        state = update(state, constant(CONFIG.lr))
    return state


def test_updates_are_those_of_torch() -> None:
    state = train(init_state(make_toy(), CONFIG), 3)
    model = make_toy()
    groups = group_params(model.parameters(), CONFIG.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=CONFIG.lr, betas=CONFIG.betas, eps=CONFIG.eps, foreach=False)
    for _ in range(3):
        gradients(model, make_batch())
        optimizer.step()
        optimizer.zero_grad()
    assert state.step == 3
    for mine, theirs in zip(state.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-8)


def test_matrices_decay_and_vectors_do_not() -> None:
    groups = group_params(make_toy().parameters(), 0.1)
    assert {(group["weight_decay"], param.ndim >= 2) for group in groups for param in group["params"]} == {
        (0.1, True),
        (0.0, False),
    }


def test_frozen_parameters_are_left_out() -> None:
    model = make_toy()
    model.embed.requires_grad_(False)
    trained = {id(p) for group in group_params(model.parameters(), 0.1) for p in group["params"]}
    assert trained == {id(p) for name, p in model.named_parameters() if not name.startswith("embed")}


def test_modules_have_shares_of_the_learning_rate_and_the_innermost_counts() -> None:
    names = [name for name, _ in make_toy().named_modules() if name.startswith("layers.1")]
    inner = next(name for name in names if name.count(".") > 1)
    shares = (("layers", 0.0), ("layers.1", 0.5), (inner, 1.0))
    plain, shared = (init_state(make_toy(), replace(CONFIG, lr_scale=scale)) for scale in ((), shares))
    before = {name: param.detach().clone() for name, param in plain.model.named_parameters()}
    plain, shared = train(plain, 1), train(shared, 1)
    ours = dict(shared.model.named_parameters())
    for name, param in plain.model.named_parameters():
        inside = {module for module, _ in shares if f"{name}.".startswith(f"{module}.")}
        share = 1.0 if inner in inside else 0.5 if "layers.1" in inside else 0.0 if inside else 1.0
        assert torch.allclose(ours[name] - before[name], share * (param - before[name]), atol=1e-7), name
    with pytest.raises(ValueError, match=r"lr_scale: Toy has no module nowhere, layers\.17"):
        init_state(make_toy(), replace(CONFIG, lr_scale=(("nowhere", 1.0), ("layers.17", 1.0))))
    with pytest.raises(ValueError, match="lr_scale of layers=-1: must be at least 0"):
        init_state(make_toy(), replace(CONFIG, lr_scale=(("layers", -1),)))


def test_update_clears_gradients_and_follows_the_schedule() -> None:
    state = init_state(make_toy(), CONFIG)
    gradients(state.model, make_batch())
    before = state.model.out.weight.detach().clone()
    state = update(state, lambda step: 0.0 if step == 0 else 1.0)
    assert torch.equal(state.model.out.weight, before)
    assert all(param.grad is None for param in state.model.parameters())


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("config", [CONFIG, NARROW], ids=["fp32", "bf16"])
def test_a_restored_state_goes_on_bit_for_bit(mesh: Mesh, sharded: bool, config: AdamWConfig) -> None:
    def fresh() -> TrainState:
        model = shard_units(make_toy(), mesh, plan_toy(), param_dtype=torch.float32) if sharded else make_toy()
        return init_state(model, config)

    half = train(fresh(), 2)
    tree = {
        "step": half.step,
        "model": {name: tensor.detach().clone() for name, tensor in state_tree(half)["model"].items()},
        "optimizer": {
            key: {name: tensor.clone() for name, tensor in named.items()}
            for key, named in state_tree(half)["optimizer"].items()
        },
    }
    unbroken, resumed = train(half, 2), train(restore_state(fresh(), tree), 2)
    assert unbroken.step == resumed.step == 4
    for mine, theirs in zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True):
        ours, other = (p.full_tensor() if sharded else p for p in (mine, theirs))
        assert torch.equal(ours, other)


def test_a_tree_without_what_is_frozen_has_what_is_trained_and_goes_on_bit_for_bit() -> None:
    def fresh() -> TrainState:
        model = make_toy()
        model.layers[1].requires_grad_(False)
        return init_state(model, CONFIG)

    half = train(fresh(), 2)
    tree = {**copy.deepcopy(state_tree(half, frozen=False)), "step": 2}
    trained = {name for name, param in half.model.named_parameters() if param.requires_grad}
    assert set(tree["model"]) == set(tree["optimizer"]["exp_avg"]) == trained
    with pytest.raises(ValueError, match=r"the tree lacks \d+ tensors of this state: model\.layers\.1\."):
        restore_state(fresh(), tree)
    unbroken, resumed = train(half, 2), train(restore_state(fresh(), tree, frozen=False), 2)
    for mine, theirs in zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_with_moments_in_bf16_a_model_learns_as_it_does_in_fp32() -> None:
    def learn(config: AdamWConfig) -> list[float]:
        state, losses = init_state(make_toy().eval(), replace(config, betas=(0.9, 0.999))), []
        x_BI = make_batch(64)
        for _ in range(150):
            loss = (state.model(x_BI) - x_BI.prod(1, keepdim=True)).square().mean()
            loss.backward()
            losses.append(loss.item())
            state = update(state, constant(config.lr))
        return losses

    wide, narrow = learn(CONFIG), learn(NARROW)
    assert wide != narrow and wide[-1] < 0.05 * wide[0]
    assert narrow[0] == wide[0]
    assert all(abs(there - here) < 0.02 * wide[0] for here, there in zip(wide, narrow, strict=True))


def test_moments_are_as_narrow_as_asked_for_and_a_restored_tree_becomes_so() -> None:
    wide, narrow = train(init_state(make_toy(), CONFIG), 2), init_state(make_toy(), NARROW)
    assert {x.dtype for x in state_tree(narrow)["optimizer"]["exp_avg"].values()} == {torch.bfloat16}
    narrow = restore_state(narrow, state_tree(wide))
    for key in ("exp_avg", "exp_avg_sq"):
        for name, moment in state_tree(narrow)["optimizer"][key].items():
            assert torch.equal(moment, state_tree(wide)["optimizer"][key][name].bfloat16())
    assert train(narrow, 1).step == 3


def test_moments_are_not_to_be_narrower_than_what_is_narrow_itself() -> None:
    with pytest.raises(ValueError, match=r"embed.weight and \d+ others are of another dtype: leave it at float32"):
        init_state(make_toy().bfloat16(), NARROW)
    state = init_state(make_toy().bfloat16(), CONFIG)
    assert {x.dtype for x in state_tree(state)["optimizer"]["exp_avg"].values()} == {torch.bfloat16}


def test_a_tree_holds_parameters_persistent_buffers_and_moments() -> None:
    tree = state_tree(init_state(make_toy(), CONFIG))
    names = {name for name, _ in make_toy().named_parameters()}
    assert set(tree["model"]) == names | {"scale"}
    assert {key: set(named) for key, named in tree["optimizer"].items()} == {
        key: names for key in ("step", "exp_avg", "exp_avg_sq")
    }


def test_a_tied_parameter_is_held_once() -> None:
    model = Toy(width=3)
    model.embed.weight = model.layers[0].linear.weight
    assert "embed.weight" in named_tensors(model)
    assert "layers.0.linear.weight" not in named_tensors(model)


def test_a_tree_that_lacks_something_is_refused() -> None:
    state = init_state(make_toy(), CONFIG)
    tree = state_tree(state)
    del tree["model"]["out.bias"], tree["optimizer"]["exp_avg"]
    with pytest.raises(ValueError, match=r"lacks \d+ tensors of this state: model.out.bias, optimizer.exp_avg.embed"):
        restore_state(state, tree)


def test_settings_out_of_range_are_told_at_once() -> None:
    bad: Any = {"lr": -1.0, "betas": (0.9, 1.0), "eps": 0.0, "weight_decay": -0.1, "max_norm": 0.0, "state_dtype": "x"}
    with pytest.raises(ValueError) as told:
        init_state(make_toy(), replace(CONFIG, **bad))
    for name, value in bad.items():
        assert f"{name}={value}" in str(told.value)
