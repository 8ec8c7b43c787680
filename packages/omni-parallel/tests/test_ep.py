"""Laws of spread experts that one rank can show; the workspace's `tests/test_experts.py` holds the rest."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from omni_mesh.mesh import Mesh
from omni_parallel import expert_parallel
from omni_parallel.ep import merge_orders, remember_travels

pytestmark = pytest.mark.filterwarnings("ignore:.*barrier.*:UserWarning")


def compute(module: nn.Module, rows_RH: Tensor, counts_E: Tensor) -> Tensor:
    """Each expert multiplies by its number plus one, twice over."""
    factors_R1 = torch.arange(1, len(counts_E) + 1).repeat_interleave(counts_E)[:, None]
    return rows_RH * factors_R1 * rows_RH


@given(st.integers(1, 4), st.integers(1, 5), st.data())
def test_rows_are_sorted_by_expert_and_then_by_rank_and_back(ranks: int, experts: int, data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 4), min_size=ranks * experts, max_size=ranks * experts))
    counts_Pe = torch.tensor(counts).view(ranks, experts)
    rows = int(counts_Pe.sum())
    there_r, back_r = merge_orders(counts_Pe, rows)
    expert_r = torch.arange(experts).repeat(ranks).repeat_interleave(counts_Pe.flatten())
    assert torch.equal(there_r, expert_r.argsort(stable=True))
    assert torch.equal(there_r[back_r], torch.arange(rows))


def test_on_one_rank_it_is_the_experts_that_were_there(mesh: Mesh) -> None:
    counts_E = torch.tensor([2, 0, 3, 1])
    plain, spread = (torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    expected = compute(nn.Module(), plain, counts_E)
    assert dist.group.WORLD is not None
    out = expert_parallel(dist.group.WORLD)(compute)(nn.Module(), spread, counts_E)
    assert torch.equal(out, expected)
    expected.square().sum().backward()
    out.square().sum().backward()
    assert torch.equal(plain.grad, spread.grad)


def test_a_recomputed_router_that_chooses_otherwise_is_loud(mesh: Mesh) -> None:
    module, group = nn.Module(), dist.group.WORLD
    assert group is not None
    spread = expert_parallel(group)(compute)
    first, again = remember_travels([module])
    with first():
        spread(module, torch.ones(6, 5), torch.tensor([2, 0, 3, 1]))
    with again(), pytest.raises(RuntimeError, match="a recomputed router chose other experts than it did"):
        spread(module, torch.ones(6, 5), torch.tensor([2, 1, 2, 1]))
    assert not vars(module).keys() & {"omni_travels"}, "nothing stays on the module"
