"""Laws of 8-bit linear layers in whole models: sharded they are what they are on one rank, and they learn as fp32 does;
where they cannot run, an app says so."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decide import decide
from fp8_ranks import curve, train_two
from ranks import Run
from shapes import MIXTURES, make_config
from training import SMALL

from omni_models import build_model, describe
from omni_parallel import ParallelPlan, RecomputeConfig
from omni_parallel.fp8 import find_linears

RECOMPUTE = {
    "nothing": RecomputeConfig(),
    "all": RecomputeConfig(every=1),
    "all but matmuls": RecomputeConfig(every=1, keep="matmuls"),
}


@pytest.mark.parametrize("param_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_two_ranks_are_one_rank_with_two_microbatches(recompute: str, param_dtype: torch.dtype, run: Run) -> None:
    # Scales are of what one pass sees, so that is the same, and no rounding to 8 bits falls out otherwise.
    one = run(train_two, 1, RECOMPUTE["nothing"], param_dtype)[0]
    two = run(train_two, 2, RECOMPUTE[recompute], param_dtype)[0]
    # What is added up in another order is as far apart as the dtype of gradients has it, after an update also weights.
    (loss, grads), (later, _) = two
    assert loss == pytest.approx(one[0][0], rel=1e-6)
    assert later == pytest.approx(one[1][0], rel=1e-3)
    for name, grad in grads.items():
        expected = one[0][1][name]
        assert grad is not None and expected is not None
        assert (grad - expected).norm() <= 1e-5 * expected.norm(), name


def test_a_model_learns_as_it_does_in_fp32(run: Run) -> None:
    """Rounding is off by 5.5 % of a gradient a product (see `test_fp8.py` of omni-parallel), to either side alike. What
    a step gains then misses the square of it, 0.3 %, for each of the up to 28 products between a weight and the loss:
    half of them on average, 4 % of what is learned."""
    plain, ours = torch.tensor(run(curve, 1, False)[0]), torch.tensor(run(curve, 1, True)[0])
    learned = plain[0] - plain[-5:].mean()
    assert learned > 2
    assert ours[0] == pytest.approx(plain[0].item(), rel=1e-3)
    assert 0 < (ours - plain).abs().mean() < 0.04 * learned


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_app_refuses_it_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="linear=fp8 multiplies 8-bit floats on GPUs, not on cpu: use linear=plain"):
        decide(replace(SMALL, out=tmp_path, linear="fp8"), 1)
    assert "fp8" not in decide(replace(SMALL, out=tmp_path), 1).told()


@pytest.mark.parametrize("family", MIXTURES)
def test_no_router_is_changed(family: str) -> None:
    # 464 experts: of no other tensor is that a size, and it is a multiple of 16.
    sizes = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 464)
    model = build_model(make_config(family, **sizes), device="meta")
    facts = describe(model)
    linears = [model.get_submodule(name) for name in find_linears(model, ParallelPlan(facts.blocks))]
    assert linears and all(layer.weight.shape[0] != 464 for layer in linears)
