"""Laws of feed-forward modules in tiles: the numbers stay, and what is inside exists for one tile at a time."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy import Count

from omni_mesh import MeshSpec
from omni_mesh.mesh import Mesh
from omni_parallel import (
    ParallelPlan,
    RecomputeConfig,
    apply_fp8,
    offload_blocks,
    plan_parallel,
    recompute_blocks,
    tile_mlps,
)
from omni_parallel.fsdp import shard_units
from omni_parallel.offload import Away

H, I = 16, 80
ROWS, TOKENS = 2, 21
SIZES = [1, 5, 7, 42, 1000]
"""Tiles that divide the 42 tokens, that do not, and that are longer than all."""


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(H, I), nn.Linear(H, I, bias=False), nn.Linear(I, H, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Pre-norm, as most are; with `after` a norm follows, too, which needs what the feed-forward gives."""

    def __init__(self, after: bool) -> None:
        super().__init__()
        self.norm, self.mix, self.mlp = nn.RMSNorm(H), nn.Linear(H, H), Mlp()
        self.after = nn.RMSNorm(H) if after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.mix(x)).cumsum(1)
        return x + self.after(self.mlp(self.norm(x)))


class Net(nn.Module):
    blocks = ("layers.0", "layers.1", "layers.2")
    mlps = tuple(f"{name}.mlp" for name in blocks)
    head = decoder = ""
    num_heads = num_kv_heads = 1
    rotaries = unsplittable = experts = expert_shapes = unspreadable = ()

    def __init__(self, after: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(3, H)
        self.layers = nn.ModuleList(Block(after) for _ in self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return x


def make_net(after: bool = False) -> Net:
    torch.manual_seed(0)
    return Net(after)


def plan_net(tile: int, every: int = 0, **more: Any) -> ParallelPlan:
    return plan_parallel(make_net(), MeshSpec(), tile=tile, recompute=RecomputeConfig(every), **more)


def make_batch() -> Tensor:
    return torch.randn(ROWS, TOKENS, 3, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, passes: int = 1) -> dict[str, Tensor]:
    """Of the summed squares of some passes, by name, with the output as "out"."""
    out = torch.zeros(())
    for factor in range(1, passes + 1):
        out = model(make_batch() * factor)
        out.square().sum().backward()
    return {"out": out.detach()} | {name: copy.copy(p.grad) for name, p in model.named_parameters()}  # type: ignore


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() <= 1e-5 * tensor.abs().max(), name


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("every", [0, 1, 2])
@pytest.mark.parametrize("tile", SIZES)
def test_output_and_every_gradient_are_those_without_tiles(tile: int, every: int, after: bool) -> None:
    plan = plan_net(tile, every)
    assert plan.tiled == Net.mlps
    ours = recompute_blocks(tile_mlps(make_net(after), plan), plan)
    assert_close(gradients(ours, passes=2), gradients(make_net(after), passes=2))


@pytest.mark.parametrize(("every", "after", "passes"), [(0, False, 2), (1, False, 2), (1, True, 3)])
def test_in_a_block_that_is_recomputed_tiles_run_again_only_where_their_output_is_needed(
    every: int, after: bool, passes: int
) -> None:
    plan = plan_net(5, every)
    with Count() as count:
        gradients(recompute_blocks(tile_mlps(make_net(after), plan), plan))
    assert count.runs["aten::silu"] == 3 * passes * -(-ROWS * TOKENS // 5)


class Widest(TorchDispatchMode):
    """The most tokens of whatever is as wide as the inside of a feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple) else (out,):
            if isinstance(x, Tensor) and x.ndim > 1 and x.shape[-1] == I:
                self.tokens = max(self.tokens, x.numel() // I)
        return out


@pytest.mark.parametrize("every", [0, 1])
def test_what_is_inside_exists_for_one_tile_at_a_time(every: int) -> None:
    def widest(tile: int) -> int:
        plan = plan_net(tile, every)
        model = recompute_blocks(tile_mlps(make_net(), plan), plan)
        with Widest() as mode:
            gradients(model)
        return mode.tokens

    assert widest(0) == ROWS * TOKENS
    assert widest(20) == 20, "a gradient of weights is as wide, of 16 rows"


def saved_bytes(model: nn.Module) -> int:
    """Bytes that a forward pass keeps, each once, but for parameters."""
    sizes: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter) and not isinstance(x._base, nn.Parameter):
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        kept = model(make_batch())
    assert kept.requires_grad
    return sum(sizes.values())


def test_the_forward_pass_keeps_nothing_but_the_input() -> None:
    inside = 3 * 4 * I * ROWS * TOKENS * 4
    """Of three blocks: what the gate, its activation and up give, and their product, in fp32."""
    assert saved_bytes(make_net()) - saved_bytes(tile_mlps(make_net(), plan_net(5))) == inside


@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_gradients_of_weights_are_summed_in_fp32_and_rounded_once(mean: float) -> None:
    tokens, tile = 4096, 16
    torch.manual_seed(0)
    start = nn.Sequential(Mlp()).bfloat16()
    x, d_out = ((torch.randn(1, tokens, H) + mean).bfloat16() for _ in range(2))

    def errors(change: Callable[[nn.Sequential], nn.Sequential] = lambda model: model, size: int = tokens) -> Tensor:
        model = change(copy.deepcopy(start))
        for first in range(0, tokens, size):
            part = slice(first, first + size)
            model(x[:, part]).backward(d_out[:, part])
        grads = [param.grad.double() for param in model.parameters() if param.grad is not None]
        return torch.stack([(ours - exact).norm() / exact.norm() for ours, exact in zip(grads, truth, strict=True)])

    exact = copy.deepcopy(start).double()
    exact(x.double()).backward(d_out.double())
    truth = [param.grad for param in exact.parameters() if param.grad is not None]
    plan = ParallelPlan(blocks=(), tiled=("0",), tile=tile)
    at_once, tiled, summed = errors(), errors(lambda model: tile_mlps(model, plan)), errors(size=tile)
    assert (tiled <= 1.3 * at_once).all(), (tiled, at_once)
    assert (summed > 2.5 * at_once).all(), "in bf16 digits are lost"


@pytest.mark.parametrize("every", [0, 1])
def test_layers_in_8_bits_are_the_same_in_one_tile_and_keep_nothing_of_it(every: int) -> None:
    def train(tile: int) -> tuple[dict[str, Tensor], list[Any]]:
        plan = plan_net(tile, every)
        model = recompute_blocks(tile_mlps(apply_fp8(make_net(), plan), plan), plan)
        found = gradients(model)
        memos = [layer.mlp.down.forward.args[1] for layer in model.layers]  # type: ignore[union-attr]
        return found, [memo.held for memo in memos]

    plain, _ = train(0)
    for tile, tolerance in ((1000, 1e-6), (5, 0.2)):
        ours, held = train(tile)
        for name, tensor in plain.items():
            assert (ours[name] - tensor).norm() <= tolerance * tensor.norm(), name
        assert held == [None] * 3


def test_what_a_block_keeps_may_wait_in_host_memory() -> None:
    plan = plan_net(5, every=0, offload=True)
    away = []

    def put_away(model: Net) -> Net:
        model = offload_blocks(tile_mlps(model, plan), plan, smallest=1)
        layer = model.layers[0]
        forward = layer.forward

        def note(x: Tensor) -> Tensor:
            out = forward(x)
            node = next(fn for fn, _ in out.grad_fn.next_functions if "Tiled" in type(fn).__name__)
            away.extend(type(kept) for kept in [node._raw_saved_tensors[0].data] if kept is not None)
            return out

        layer.forward = note
        return model

    there, here = gradients(put_away(make_net())), gradients(tile_mlps(make_net(), plan))
    assert all(torch.equal(there[name], here[name]) for name in here)
    assert away == [Away]


def test_a_parameter_gets_its_gradient_once() -> None:
    model, times = tile_mlps(make_net(), plan_net(5)), []
    for param in model.parameters():
        param.register_post_accumulate_grad_hook(times.append)
    gradients(model)
    assert len(times) == len(list(model.parameters()))


@pytest.mark.filterwarnings("ignore:.*barrier.*:UserWarning")
@pytest.mark.parametrize("every", [0, 1])
def test_sharded_the_numbers_stay(every: int, mesh: Mesh) -> None:
    plan = replace(plan_net(5, every), reshard_after_forward=True)
    model = shard_units(recompute_blocks(tile_mlps(make_net(), plan), plan), mesh, plan, param_dtype=torch.float32)
    ours = {name: grad.full_tensor() if name != "out" else grad for name, grad in gradients(model, 2).items()}  # type: ignore
    assert_close(ours, gradients(make_net(), 2))


def test_frozen_weights_and_inputs_cost_no_gradients_and_without_any_nothing_is_kept() -> None:
    mlp = Mlp()
    mlp.gate.requires_grad_(False)
    model = tile_mlps(nn.Sequential(copy.deepcopy(mlp)), ParallelPlan(blocks=(), tiled=("0",), tile=5))
    x = torch.randn(7, H)
    model(x).sum().backward()
    mlp(x).sum().backward()
    for ours, theirs in zip(model.parameters(), mlp.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert theirs.grad is None or torch.allclose(ours.grad, theirs.grad, atol=1e-6)  # type: ignore
    with torch.no_grad():
        assert torch.allclose(model(x), mlp(x), atol=1e-6)
        assert not model(x).requires_grad
    x.requires_grad_()
    for each in (model, mlp):
        each.requires_grad_(False)
    (ours,), (theirs,) = (torch.autograd.grad(each(x).sum(), x) for each in (model, mlp))
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_of_no_tokens_gradients_are_zeros() -> None:
    model = tile_mlps(nn.Sequential(Mlp()), ParallelPlan(blocks=(), tiled=("0",), tile=5))
    out = model(torch.empty(0, H))
    out.sum().backward()
    assert out.shape == (0, H)
    assert all(param.grad is not None and not param.grad.any() for param in model.parameters())


def test_memory_in_any_order_and_one_gradient_for_two_parameters() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(H)), nn.Parameter(torch.zeros(H))

        def forward(self, x: Tensor) -> Tensor:
            return x * 2 + (self.a + self.b)

    model = tile_mlps(nn.Sequential(Twins()), ParallelPlan(blocks=(), tiled=("0",), tile=5))
    x = torch.randn(H, 3, 7).permute(2, 1, 0).requires_grad_()
    out = model(x)
    out.backward(torch.ones(()).expand(out.shape))
    assert torch.equal(out, x * 2)
    assert x.grad is not None and (x.grad == 2).all()
    assert all((param.grad == 21).all() for param in model.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("module", [nn.Linear(H, 3), nn.Linear(H, H, dtype=torch.bfloat16)], ids=["shape", "dtype"])
def test_what_does_not_keep_shape_and_dtype_is_refused(module: nn.Module) -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.to(self.inner.weight.dtype))

    model = tile_mlps(nn.Sequential(Cast()), ParallelPlan(blocks=(), tiled=("0",), tile=5))
    with pytest.raises(ValueError, match=r"a module in tiles takes \[5, 16\] in torch.float32 and gives \[5, "):
        model(torch.randn(7, H))


def test_a_change_of_weights_before_the_backward_pass_is_told() -> None:
    model = tile_mlps(nn.Sequential(Mlp()), ParallelPlan(blocks=(), tiled=("0",), tile=5))
    out = model(torch.randn(7, H)).sum()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("every", [0, 1])
def test_on_a_gpu_memory_is_that_of_a_tile_and_numbers_stay(every: int) -> None:
    tokens, width, inner = 32768, 256, 8192

    def train(tile: int) -> tuple[list[Tensor], int]:
        torch.manual_seed(0)
        layers = [nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, width)]
        model = nn.Sequential(nn.Sequential(*layers)).to("cuda", torch.bfloat16)
        plan = ParallelPlan(blocks=("0",), recompute=("0",)[:every], tiled=("0",) if tile else (), tile=tile)
        model = recompute_blocks(tile_mlps(model, plan), plan)
        x = torch.randn(1, tokens, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = model(x)
        out.float().square().mean().backward()
        grads = [x.grad, *(param.grad for param in model.parameters())]
        return [out, *(grad for grad in grads if grad is not None)], torch.cuda.max_memory_allocated() - before

    (plain, most), (tiled, less) = train(0), train(1024)
    assert len(plain) == len(tiled) == 6
    for ours, theirs in zip(tiled, plain, strict=True):
        assert (ours - theirs).float().norm() <= 1e-2 * theirs.float().norm()
    inside = tokens * inner * 2
    assert most > 2 * inside
    assert less < inside


def test_names_stay() -> None:
    assert list(tile_mlps(make_net(), plan_net(5)).state_dict()) == list(make_net().state_dict())
