"""Laws of a step: garbage waits for it, and one without a target is a step like others."""

import gc
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import Run
from step import Loss, accumulate_grads_, rare_collections, scale_or_skip, short_turns
from training import SMALL, turns_of

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


def test_what_a_process_had_frozen_stays_frozen_and_nothing_else() -> None:
    gc.unfreeze()
    with rare_collections():
        assert gc.get_freeze_count()
    assert not gc.get_freeze_count()
    gc.freeze()
    frozen = gc.get_freeze_count()
    cycle = type("Cycle", (), {})()
    cycle.itself, left = cycle, weakref.ref(cycle)
    with rare_collections(every=1) as collect_at:
        assert 0 < gc.get_freeze_count() <= frozen
        del cycle
        collect_at(1)
        assert left() is None, "what a run leaves behind can be collected"
    # Who is frozen may still end, when nobody holds it.
    assert frozen - 100 < gc.get_freeze_count() <= frozen


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


def test_turns_are_short_while_a_run_lasts() -> None:
    before = sys.getswitchinterval()
    with pytest.raises(KeyError), short_turns(1e-3):
        assert sys.getswitchinterval() == pytest.approx(1e-3)
        raise KeyError
    assert sys.getswitchinterval() == pytest.approx(before) and before > 2e-3


def test_a_run_takes_short_turns_in_each_step(run: Run, tmp_path: Path) -> None:
    (turns,) = run(turns_of, 1, replace(SMALL, model="tiny", steps=2, out=tmp_path / "run"))
    assert len(turns) == 2 and all(seconds < 1e-3 for seconds in turns)
