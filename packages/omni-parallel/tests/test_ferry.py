"""Laws of moments in memory of the host: numbers are those of moments that stay, and the device forgets them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from interpret import interpret
from torch import Tensor, nn
from toy import gradients, make_batch, make_toy, plan_toy

from omni_mesh.mesh import Mesh
from omni_parallel import AdamWConfig, constant, init_state, restore_state, state_tree, update
from omni_parallel.adamw import AdamW, Held, cut
from omni_parallel.casts import kept_cast
from omni_parallel.ferry import MOST, SMALLEST, Ferry
from omni_parallel.fsdp import shard_units
from omni_parallel.host import make_host
from omni_parallel.local import local
from omni_parallel.optim import TrainState, group_params
from omni_parallel.rounding import Throw

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DTYPES = pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
SIZES = ((3, 1000), (7,), (0, 4), (2049,), (64, 64))


def make_state(model: nn.Module, dtype: torch.dtype | None, ferry: Ferry | None) -> TrainState:
    groups = group_params(model.parameters(), 0.1)
    return TrainState(0, model, AdamW(groups, lr=0.01, state_dtype=dtype, ferry=ferry))


def train(state: TrainState, steps: int) -> TrainState:
    for _ in range(steps):
        gradients(state.model, make_batch())
        state = update(state, constant(0.01))
    return state


def leaves(state: TrainState) -> Iterator[Tensor]:
    tree = state_tree(state)
    for named in (tree["model"], *tree["optimizer"].values()):
        yield from map(local, named.values())


def moments(state: TrainState) -> list[Tensor]:
    tree = state_tree(state)["optimizer"]
    return [local(x) for key in ("exp_avg", "exp_avg_sq") for x in tree[key].values()]


def assert_same(one: TrainState, other: TrainState) -> None:
    for mine, theirs in zip(leaves(one), leaves(other), strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine.cpu(), theirs.cpu())


@DTYPES
@pytest.mark.parametrize("sharded", [False, True])
def test_numbers_are_those_of_moments_that_stay(mesh: Mesh, sharded: bool, dtype: torch.dtype | None) -> None:
    def fresh(ferry: Ferry | None) -> TrainState:
        model = shard_units(make_toy(), mesh, plan_toy(), param_dtype=torch.float32) if sharded else make_toy()
        return make_state(model, dtype, ferry)

    ferry = Ferry(smallest=1, most=8)
    away = train(fresh(ferry), 2)
    assert all(ferry.holds(x) for x in moments(away))
    assert_same(train(fresh(None), 2), away)
    # And so are those of a run that goes on with a tree of it, whichever of the two held them.
    for first, second in ((Ferry(smallest=1, most=8), None), (None, Ferry(smallest=1, most=8))):
        resumed = restore_state(fresh(first), state_tree(train(fresh(second), 2)))
        assert_same(train(resumed, 1), train(fresh(None), 3))


def test_a_parameter_is_cut_into_pieces_that_share_its_memory_and_throw_as_the_whole() -> None:
    param, grad, first, second = torch.randn(4, 5, 13)
    own = Held(param, grad, first, second, Throw(torch.tensor(1.0), 2, 3), param.bfloat16())
    pieces = list(cut(own, 16))
    assert [(piece.throw.start, len(piece.param)) for piece in pieces] == [
        (n, min(16, 65 - n)) for n in range(0, 65, 16)
    ]
    for name in ("param", "grad", "first", "second", "cast"):
        whole = getattr(own, name)
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), whole.flatten())
        assert pieces[1].throw.param == 2 and getattr(pieces[1], name).data_ptr() == whole.view(-1)[16:].data_ptr()
    assert [piece.cast for piece in cut(Held(*own_tensors(own), own.throw, None), 64)] == [None, None]


def own_tensors(own: Held) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return own.param, own.grad, own.first, own.second


def draw(dtype: torch.dtype, scale: float | None) -> dict[str, Any]:
    random = torch.Generator().manual_seed(0)
    tensors = []
    for size in SIZES:
        p, g, m, v = (torch.randn(size, generator=random) for _ in range(4))
        tensors.append((p, g.bfloat16(), m.to(dtype), v.square().to(dtype)))
    return {"tensors": tensors, "scale": None if scale is None else torch.tensor(scale)}


def test_kernels_do_the_same_to_moments_that_come_in_pieces_in_tritons_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    cases = [draw(torch.float32, None), draw(torch.bfloat16, 0.5), draw(torch.bfloat16, float("nan"))]
    given = [case | {"away": away, "most": most} for case in cases for away, most in ((False, 4), (True, 1024))]
    found = interpret(Path(__file__).parent / "ferry_main.py", given, tmp_path)
    for here, away in zip(found[::2], found[1::2], strict=True):
        assert len(here) == 5 * len(SIZES)
        assert all(torch.equal(one, other) for one, other in zip(here, away, strict=True))


def test_what_the_host_has_not_is_told_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"the host has not 1152921504.61 GB more for moments \(.*\): have fewer."):
        make_host(1 << 60, pin=True, what="moments", remedy="have fewer")


def test_small_tensors_stay() -> None:
    ferry = Ferry()
    small, large = nn.Parameter(torch.zeros(SMALLEST // 4 - 1)), nn.Parameter(torch.zeros(SMALLEST // 4))
    state = AdamW([small, large], ferry=ferry).state
    assert not ferry.holds(state[small]["exp_avg"]) and ferry.holds(state[large]["exp_avg"])
    assert not ferry.holds(AdamW([large]).state[large]["exp_avg"])
    config = AdamWConfig(offload=True, state_dtype="bfloat16")
    wide = nn.Linear(1 << 10, 1 << 10)
    optimizer = init_state(wide, config).optimizer
    assert optimizer.ferry is not None and optimizer.ferry.holds(optimizer.state[wide.weight]["exp_avg_sq"])
    assert not optimizer.ferry.holds(optimizer.state[wide.bias]["exp_avg_sq"])


def learn(state: TrainState, steps: int, scale: Tensor | None = None) -> TrainState:
    """Some updates by gradients that depend on the step alone, in bf16."""
    random = torch.Generator(state.model.get_parameter("0").device)
    for _ in range(steps):
        random.manual_seed(state.step)
        for param in state.model.parameters():
            param.grad_dtype = None
            param.grad = torch.randn(param.shape, generator=random, device=param.device, dtype=torch.bfloat16)
        state = update(state, constant(0.01), scale=scale, keep_casts=True)
    return state


def make_wide(*sizes: int) -> nn.ParameterList:
    torch.manual_seed(0)
    return nn.ParameterList(nn.Parameter(torch.randn(size, device="cuda")) for size in sizes)


@pytest.mark.gpu
@needs_gpu
@DTYPES
@pytest.mark.parametrize("most", [4096, MOST])
def test_on_a_gpu_numbers_survive_the_streams(dtype: torch.dtype | None, most: int) -> None:
    sizes = (1_000_001, 7, 300_000, 2 * MOST + 12, 65_536)
    scale = torch.tensor(0.5, device="cuda")
    ferry = Ferry(smallest=1024, most=most)
    away, stays = make_state(make_wide(*sizes), dtype, ferry), make_state(make_wide(*sizes), dtype, None)
    assert [x.is_cuda for x in moments(away)] == [False, True, False, False, False] * 2
    assert all(x.is_cuda or x.is_pinned() for x in moments(away))
    for _ in range(3):
        away, stays = learn(away, 2, scale), learn(stays, 2, scale)
        for param in away.model.parameters():
            cast = kept_cast(param)
            assert cast is not None and torch.equal(cast, param.bfloat16())
        # A tree waits for what is on its way.
        assert_same(away, stays)
    restored = make_state(make_wide(*sizes), dtype, Ferry(smallest=1024, most=most))
    assert_same(learn(restore_state(restored, state_tree(away)), 1), learn(stays, 1))


@pytest.mark.gpu
@needs_gpu
@DTYPES
def test_on_a_gpu_moments_take_memory_of_some_pieces(dtype: torch.dtype | None) -> None:
    n = 1 << 28
    model = make_wide(n)
    before = torch.cuda.memory_allocated()
    state = make_state(model, dtype, Ferry())
    assert torch.cuda.memory_allocated() - before < 1 << 20
    state.model.get_parameter("0").grad = torch.ones(n, device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    state = update(state, constant(0.01))
    assert torch.cuda.max_memory_allocated() - before <= 3 * 2 * 4 * MOST + (1 << 20)
    assert torch.cuda.memory_allocated() <= before - 4 * n + (1 << 20)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_on_a_gpu_the_host_never_waits_for_an_update() -> None:
    state = make_state(make_wide(1 << 20, 1 << 12), torch.bfloat16, Ferry(smallest=1, most=1 << 16))
    scale = torch.tensor(0.5, device="cuda")
    state = learn(state, 1, scale)
    for param in state.model.parameters():
        param.grad_dtype = None
        param.grad = torch.ones_like(param, dtype=torch.bfloat16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        state = update(state, constant(0.01), scale=scale, keep_casts=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(x.isfinite().all() for x in leaves(state))


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_what_goes_back_waits_for_what_changes_it() -> None:
    """The device is kept busy before an update, so that copies made too early would carry what was there before."""
    away = make_state(make_wide(1 << 22), None, Ferry(most=1 << 18))
    stays = make_state(make_wide(1 << 22), None, None)
    for _ in range(3):
        torch.cuda._sleep(50_000_000)
        away = learn(away, 1)
        torch.cuda._sleep(50_000_000)
        away = learn(away, 1)
        stays = learn(stays, 2)
        assert_same(away, stays)
