"""Laws of spread experts that one rank can show; the workspace's `tests/test_experts.py` holds the rest."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from omni_mesh.mesh import Mesh
from omni_parallel import expert_parallel
from omni_parallel.ep import remember_travels

pytestmark = pytest.mark.filterwarnings("ignore:.*barrier.*:UserWarning")


class Factors(nn.Module):
    """Expert e multiplies the square of a token by e + 1."""

    num_experts = 4


def compute(
    module: nn.Module,
    x_TH: Tensor,
    expert_TK: Tensor,
    weights_TK: Tensor,
    *,
    rows: int | None = None,
    across: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    assert rows in (None, int((expert_TK < 4).sum()))
    factors_T = (weights_TK * (expert_TK + 1) * (expert_TK < 4)).sum(1, keepdim=True)
    out_TH = x_TH * factors_T * x_TH
    return out_TH if across is None else across(out_TH)


def tokens(choices: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x_TH, scores_TE = torch.randn(6, 5, generator=random), torch.rand(6, 4, generator=random)
    weights_TK, expert_TK = scores_TE.topk(choices)
    return x_TH.requires_grad_(), expert_TK, weights_TK.requires_grad_()


@pytest.mark.parametrize("choices", [1, 2, 3], ids=["sent", "gathered", "gathered, three"])
def test_on_one_rank_it_is_the_experts_that_were_there(mesh: Mesh, choices: int) -> None:
    plain, spread = tokens(choices), tokens(choices)
    expected = compute(Factors(), *plain)
    assert dist.group.WORLD is not None
    out = expert_parallel(dist.group.WORLD)(compute)(Factors(), *spread)
    assert torch.equal(out, expected)
    expected.square().sum().backward()
    out.square().sum().backward()
    assert torch.equal(plain[0].grad, spread[0].grad)
    assert torch.equal(plain[2].grad, spread[2].grad)


@pytest.mark.parametrize("choices", [1, 2], ids=["sent", "gathered"])
def test_a_recomputed_router_that_chooses_otherwise_is_loud(mesh: Mesh, choices: int) -> None:
    module, group = Factors(), dist.group.WORLD
    assert group is not None
    spread = expert_parallel(group)(compute)
    first, again = remember_travels([module])
    x_TH, expert_TK, weights_TK = tokens(choices)
    with first():
        spread(module, x_TH, expert_TK, weights_TK)
    with again(), pytest.raises(RuntimeError, match="a recomputed router chose other experts than it did"):
        spread(module, x_TH[:5], expert_TK[:5], weights_TK[:5])
    assert not vars(module).keys() & {"omni_travels"}, "nothing stays on the module"


@pytest.mark.parametrize("even", [True, False])
def test_of_a_recomputed_call_nothing_is_held(mesh: Mesh, even: bool) -> None:
    """A function that holds tokens would keep them from being freed, unseen by what recomputes."""
    module, group = Factors(), dist.group.WORLD
    assert group is not None
    spread = expert_parallel(group, even=even)(compute)
    first, _ = remember_travels([module])
    x_TH, expert_TK, weights_TK = tokens(2)
    held = x_TH * 1
    alive = weakref.ref(held)
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.shape, torch.zeros),
        first(),
    ):
        out = spread(module, held, expert_TK, weights_TK)
    del held
    gc.collect()
    assert out.requires_grad
    assert alive() is None
