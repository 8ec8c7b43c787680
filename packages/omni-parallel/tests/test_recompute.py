"""Laws of recomputation: nothing changes but when a block runs."""

import torch
from toy import gradients, make_batch, make_toy, plan_toy

from omni_parallel import recompute_blocks


def test_gradients_are_bit_equal_with_dropout() -> None:
    plain = gradients(make_toy(), make_batch())
    again = gradients(recompute_blocks(make_toy(), plan_toy(every=1)), make_batch())
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_only_the_planned_blocks_run_twice() -> None:
    model = recompute_blocks(make_toy(), plan_toy(every=2))
    gradients(model, make_batch())
    assert [layer.calls for layer in model.layers] == [2, 1, 2]


def test_names_of_parameters_stay() -> None:
    assert list(recompute_blocks(make_toy(), plan_toy(every=1)).state_dict()) == list(make_toy().state_dict())
