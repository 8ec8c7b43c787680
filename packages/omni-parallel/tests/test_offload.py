"""Laws of activations in host memory: numbers stay, the device forgets, memory of the host is used again."""

import copy
import gc
from dataclasses import replace

import pytest
import torch
from attending import KEEPS, assert_same, make_attention_toy, plan_keep
from torch import Tensor, nn
from toy import Block, Toy, gradients, make_batch, make_toy, plan_toy

from omni_mesh import MeshSpec
from omni_parallel import ParallelPlan, RecomputeConfig, offload_blocks, plan_parallel, recompute_blocks
from omni_parallel.arena import Arena
from omni_parallel.offload import SMALLEST, Away, Group

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]


def offloaded(model: Toy, plan: ParallelPlan) -> Toy:
    plan = replace(plan, offload=plan.blocks)
    return offload_blocks(recompute_blocks(model, plan), plan, smallest=1)


def put_away() -> list[Away]:
    gc.collect()
    return [x for x in gc.get_objects() if type(x) is Away]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("every", [0, 1, 2])
@pytest.mark.parametrize("keep", KEEPS)
def test_gradients_are_bit_equal(device: str, every: int, keep: str) -> None:
    plan = plan_keep(keep, every) if every else plan_toy()
    x_BI = make_batch().to(device)
    plain = gradients(recompute_blocks(make_attention_toy().to(device), plan), x_BI)
    model = offloaded(make_attention_toy().to(device), plan)
    for _ in range(3):
        model.zero_grad()
        assert_same(plain, gradients(model, x_BI))


@pytest.mark.parametrize("every", [0, 1])
def test_all_that_blocks_keep_leaves_but_what_is_on_its_way(every: int) -> None:
    model = offloaded(make_attention_toy(), plan_keep("attention", 1) if every else plan_toy())
    loss = model(make_batch()).sum()
    away = put_away()
    groups = {id(each.group): each.group for each in away}
    assert len(groups) == 3
    here = {id(each.group) for each in away if each.here is not None}
    assert len(here) == 2, "what the last two blocks keep is on its way"
    assert all(each.back is None for each in away)
    loss.backward()
    del loss, away, groups
    assert not put_away()


def test_of_a_recomputed_block_its_input_and_what_it_keeps_leave() -> None:
    counts = {}
    for keep in KEEPS:
        loss = offloaded(make_attention_toy(), plan_keep(keep))(make_batch()).sum()
        counts[keep] = sorted(tuple(each.size) for each in put_away())
        del loss
    assert counts["nothing"] == [(12, 7)] * 3
    assert len(counts["attention"]) > 3
    assert len(counts["matmuls"]) == len(counts["attention"]) + 3


class Twice(Block):
    """A block two layers of which save the same input, and one a transposed one."""

    def forward(self, x_BH: Tensor) -> Tensor:
        x_BH = self.norm(x_BH)
        return self.linear(x_BH) * self.linear(x_BH) + (x_BH.T.sin() @ self.linear(x_BH)).sum()


def test_what_several_operators_save_leaves_once_and_comes_back_as_it_lay() -> None:
    plain, model = make_toy(), make_toy()
    for each in (plain, model):
        torch.manual_seed(3)
        each.layers = nn.ModuleList(Twice(7) for _ in each.blocks)
    offloaded(model, plan_toy())
    assert_same(gradients(plain, make_batch()), gradients(model, make_batch()))
    loss = model(make_batch()).sum()
    inputs = [each for each in put_away() if tuple(each.size) == (12, 7)]
    transposed = [each for each in put_away() if tuple(each.size) == (7, 12)]
    assert len(inputs) == 3 * 5, "the input, what three layers share, and what each of them gives"
    assert all(each.stride == (1, 7) for each in transposed)
    del loss


def test_the_same_memory_of_the_host_is_used_in_each_step() -> None:
    model = offloaded(make_attention_toy(), plan_toy())
    memories = []
    for _ in range(3):
        loss = model(make_batch()).sum()
        memories.append({each.place for each in put_away()})
        loss.backward()
        del loss
    assert memories[0] == memories[1] == memories[2]


def arena() -> Arena:
    gc.collect()
    (found,) = [x for x in gc.get_objects() if type(x) is Arena and x.chunks]
    return found


def test_memory_of_the_host_is_what_was_needed_at_once_where_sizes_differ_from_step_to_step() -> None:
    model, plain = offloaded(make_attention_toy(), plan_toy()), make_attention_toy()
    held: list[int] = []
    for rows in (40, *range(12, 41), 56):
        plain.zero_grad()
        model.zero_grad()
        assert_same(gradients(plain, make_batch(rows)), gradients(model, make_batch(rows)))
        held.append(arena().nbytes)
    first, *_, last = held
    assert held[:-1] == [first] * 30
    assert first < last < 1.5 * first


def test_what_a_step_put_away_is_forgotten_when_the_next_begins() -> None:
    plan = replace(plan_toy(), offload=plan_toy().blocks[:2])
    model = offload_blocks(make_attention_toy(), plan, smallest=1)
    for _ in range(3):
        model(make_batch()).sum().backward()
    kept = model(make_batch()[:1])
    gc.collect()
    groups = [x for x in gc.get_objects() if type(x) is Group]
    assert len(groups) == 2
    del kept


def test_parameters_and_small_tensors_stay_and_so_does_all_without_a_backward_pass() -> None:
    model = offload_blocks(make_attention_toy(), replace(plan_toy(), offload=plan_toy().blocks))
    loss = model(make_batch()).sum()
    assert SMALLEST > 12 * 7 * 4 and not put_away()
    del loss
    model = offloaded(make_attention_toy(), plan_toy())
    with torch.no_grad():
        model(make_batch())
    assert not put_away()
    loss = model(make_batch()).sum()
    assert not [each for each in put_away() if tuple(each.size) in {(7, 7), (7,)}]
    del loss


class Changes(Block):
    """A block that writes over what was kept of it."""

    def forward(self, x_BH: Tensor) -> Tensor:
        h_BH = self.linear(x_BH)
        kept_BH = h_BH.sin()
        h_BH.add_(1)
        return kept_BH


class Turns(Block):
    """A block that keeps what is conjugated, and what is negated, only when it is read."""

    def forward(self, x_BH: Tensor) -> Tensor:
        turned_BH = torch.complex(super().forward(x_BH), x_BH)
        kept_BH = turned_BH.conj()
        return (turned_BH * kept_BH).real + kept_BH.imag * x_BH


def test_what_is_turned_only_when_it_is_read_stays() -> None:
    model = make_toy()
    model.layers = nn.ModuleList(Turns(7) for _ in model.blocks)
    plain = gradients(copy.deepcopy(model), make_batch())
    assert_same(gradients(offloaded(model, plan_toy()), make_batch()), plain)


def test_a_tensor_that_is_changed_after_is_told() -> None:
    model = make_toy()
    model.layers = nn.ModuleList(Changes(7) for _ in model.blocks)
    offloaded(model, plan_toy())
    with pytest.raises(RuntimeError, match=r"a tensor of \[12, 7\] .* was changed in place after: leave its block"):
        model(make_batch()).sum().backward()


def test_the_last_block_is_not_worth_it() -> None:
    assert plan_parallel(make_toy(), MeshSpec(), offload=True).offload == ("layers.0", "layers.1")
    assert plan_parallel(make_toy(), MeshSpec(), recompute=RecomputeConfig(1)).offload == ()


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_memory_is_that_of_two_blocks_and_numbers_survive_the_streams() -> None:
    def measure(*, offload: bool) -> tuple[int, list[Tensor]]:
        torch.manual_seed(0)
        model = make_toy(512).cuda()
        model.layers = nn.ModuleList(Block(512) for _ in range(12)).cuda().eval()
        model.embed = nn.Linear(3, 512).cuda()
        plan = replace(plan_toy(), blocks=tuple(f"layers.{i}" for i in range(12)))
        if offload:
            offloaded(model, plan)
        x_BI = make_batch(200_000).cuda()
        for _ in range(3):
            model.zero_grad()
            torch.cuda.reset_peak_memory_stats()
            model(x_BI).square().mean().backward()
        return torch.cuda.max_memory_allocated(), [param.grad for param in model.parameters()]  # pyright: ignore

    plain, grads = measure(offload=False)
    less, again = measure(offload=True)
    assert less < 0.5 * plain
    assert all(torch.equal(one, other) for one, other in zip(grads, again, strict=True))
