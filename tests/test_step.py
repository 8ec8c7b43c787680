"""Laws of a step: garbage waits for it, and one without a target is a step like others."""

import gc

import pytest
import torch
from step import Loss, accumulate_grads_, rare_collections, scale_or_skip

from omni_data import IGNORE
from omni_mesh import join_world
from omni_models import build_model, read_config
from omni_parallel import grad_norm


def test_garbage_waits_for_its_step() -> None:
    assert gc.isenabled()
    with rare_collections(every=3) as collect_at:
        assert not gc.isenabled()
        gc.collect()
        cycle: list[object] = []
        cycle.append(cycle)
        del cycle
        before = gc.get_stats()[2]["collections"]
        collect_at(1)
        assert gc.get_stats()[2]["collections"] == before
        collect_at(3)
        assert gc.get_stats()[2]["collections"] == before + 1
    assert gc.isenabled()


@pytest.mark.parametrize("loss", ["chunked", "full"])
def test_a_step_without_a_target_has_a_loss_of_zero_and_is_not_skipped(loss: Loss) -> None:
    model = build_model(read_config("tiny"))
    ids = torch.arange(8)[None]
    inputs = {"input_ids": ids, "labels_Bs": torch.full_like(ids, IGNORE)}
    others = {"real_T": torch.ones(8, dtype=torch.bool), "sources_B": torch.zeros(1, dtype=torch.int64)}
    with join_world(device="cpu"):
        metrics, _ = accumulate_grads_(model, [inputs | others], loss)
        metrics |= {"grad_norm": grad_norm(model)}
    assert {name: value.item() for name, value in metrics.items()} == {"loss": 0, "targets": 0, "grad_norm": 0}
    assert scale_or_skip(metrics, 1.0).isfinite()
    grads = [param.grad for param in model.parameters()]
    assert all(grad is not None and not grad.any() for grad in grads)
