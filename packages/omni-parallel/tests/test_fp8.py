"""Laws of 8-bit linear layers: what they compute, what they lose, what they hold, and what they leave alone.

Dimensions: T tokens, K features in, N features out.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interpret import compile_ahead, interpret
from quick_products import quick_products
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from toy import Count

from omni_mesh.mesh import Mesh
from omni_parallel import ParallelPlan, apply_fp8, fp8_problems, recompute_blocks, shard_fsdp
from omni_parallel.fp8 import GRADIENTS, LEAST, VALUES, Memo, find_linears, find_step, quantize
from omni_parallel.fsdp import shard_units
from omni_parallel.plan import KEPT

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
CUDA = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="needs a GPU")])]
DIGITS = {VALUES: (3, -6), GRADIENTS: (2, -14)}
"""Of each format the digits after the first, and the smallest exponent that has all of them."""
SIZES = [(32, 48, 64), (37, 64, 48), (1, 16, 32)]


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_products():
        yield


class Attention(nn.Module):
    """A block of as many linear layers as most have: three take one tensor, two take another."""

    def __init__(self, width: int, bias: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.o = nn.Linear(width, width, bias=bias)
        self.gate_proj, self.up = (nn.Linear(width, 2 * width, bias=bias) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=bias)
        self.router = nn.Linear(width, 16)
        self.few = nn.Linear(width, 1)

    def forward(self, x_BSH: Tensor) -> Tensor:
        h_BSH = self.norm(x_BSH)
        x_BSH = x_BSH + self.o(F.scaled_dot_product_attention(self.q(h_BSH), self.k(h_BSH), self.v(h_BSH)))
        h_BSH = F.layer_norm(x_BSH, x_BSH.shape[-1:])
        return x_BSH + self.down(F.silu(self.gate_proj(h_BSH)) * self.up(h_BSH)) * self.few(h_BSH).sigmoid()


class Toy(nn.Module):
    def __init__(self, width: int = 32, bias: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.layers = nn.ModuleList(Attention(width, bias) for _ in range(2))
        self.head = nn.Linear(width, width)

    def forward(self, x_BSH: Tensor) -> Tensor:
        h_BSH = self.embed(x_BSH)
        for layer in self.layers:
            h_BSH = layer(h_BSH)
        return self.head(h_BSH)


PLAN = ParallelPlan(blocks=("layers.0", "layers.1"), head="head")
ONES = ("q", "k", "v", "o", "gate_proj", "up", "down")


def make_toy(width: int = 32, bias: bool = False) -> Toy:
    torch.manual_seed(0)
    return Toy(width, bias)


def make_x(width: int = 32) -> Tensor:
    return torch.randn(2, 24, width, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, x_BSH: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x_BSH).square().sum().backward()
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


class Linear(nn.Module):
    """One layer as a model of one block."""

    def __init__(self, K: int, N: int, bias: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(K, N, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


ONE = ParallelPlan(blocks=("block",))


def make_linear(
    K: int, N: int, *, bias: bool = True, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Linear:
    torch.manual_seed(0)
    return apply_fp8(Linear(K, N, bias).to(device, dtype), ONE)


def draw(*sizes: int, seed: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers over several powers of ten, as gradients are."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(*sizes, generator=random) * torch.randn(*sizes[:-1], 1, generator=random).exp()
    return x.to(device, dtype)


def round_to(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The 8-bit numbers next to `x` by their definition, in fp64, and what 1 stands for."""
    digits, smallest = DIGITS[dtype]
    most = torch.finfo(dtype).max
    largest = x.abs().max().float()
    # By a tensor: on a GPU torch divides by a number by multiplying with its inverse.
    step = torch.ones_like(largest) if largest == 0 else largest / torch.full_like(largest, most)
    scaled = (x.float() * (1 / step)).double()
    exponents = torch.frexp(scaled)[1].sub(1).clamp(min=smallest)
    unit = torch.exp2(exponents.double() - digits)
    # torch rounds halves to even, as the formats do.
    return ((scaled / unit).round() * unit).clamp(-most, most), step.double()


def by_formula(x_TK: Tensor, w_NK: Tensor, b_N: Tensor | None, dy_TN: Tensor) -> dict[str, Tensor]:
    (x, x_step), (w, w_step), (dy, dy_step) = (
        round_to(x_TK, VALUES),
        round_to(w_NK, VALUES),
        round_to(dy_TN, GRADIENTS),
    )
    y = x @ w.T * x_step * w_step
    return {
        "y": y if b_N is None else y + b_N.double(),
        "dx": dy @ w * dy_step * w_step,
        "dw": dy.T @ x * dy_step * x_step,
        "db": dy_TN.double().sum(0),
    }


def by_layer(model: Linear, x_TK: Tensor, dy_TN: Tensor) -> dict[str, Tensor]:
    x_TK = x_TK.clone().requires_grad_()
    y_TN = model(x_TK)
    y_TN.backward(dy_TN)
    layer = model.block[0]
    found = {
        "y": y_TN.detach(),
        "dx": x_TK.grad,
        "dw": layer.weight.grad,
        "db": None if layer.bias is None else layer.bias.grad,
    }
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def distance(a: Tensor, b: Tensor) -> float:
    """Of `a` from `b`, in parts of `b`."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("T", "K", "N"), SIZES)
def test_a_layer_and_its_gradients_are_those_of_rounded_tensors(T: int, K: int, N: int, bias: bool) -> None:
    model = make_linear(K, N, bias=bias)
    x_TK, dy_TN = draw(T, K, seed=1), draw(T, N, seed=2)
    expected = by_formula(x_TK, model.block[0].weight.detach(), model.block[0].bias, dy_TN)
    found = by_layer(model, x_TK, dy_TN)
    assert set(found) == {"y", "dx", "dw", "db"} if bias else {"y", "dx", "dw"}
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert distance(tensor, expected[name]) < 1e-6, name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("T", "K", "N"), [*SIZES, (1000, 1024, 512)])
def test_in_bf16_only_what_comes_out_is_rounded_once_more(device: str, T: int, K: int, N: int) -> None:
    model = make_linear(K, N, device=device, dtype=torch.bfloat16)
    x_TK, dy_TN = (draw(T, k, seed=k, device=device, dtype=torch.bfloat16) for k in (K, N))
    expected = by_formula(x_TK, model.block[0].weight.detach(), model.block[0].bias.detach(), dy_TN)
    for name, tensor in by_layer(model, x_TK, dy_TN).items():
        assert tensor.dtype == torch.bfloat16
        # Half a last digit of bf16, and in the forward pass as much again for accumulators of few digits.
        assert distance(tensor, expected[name]) < (2**-8 if name == "y" else 2**-9), name


def test_what_is_lost_is_what_the_formats_leave_out() -> None:
    """A number is off by an even share of its last digit: 2^-d / sqrt(12) of a power of two, which on average over
    mantissas is 1 / sqrt(1.5 / ln 2) of the number itself. Errors of two factors add up as squares."""
    T, K, N = 256, 512, 384
    model = make_linear(K, N, bias=False)
    x_TK, dy_TN = (torch.randn(T, k, generator=torch.Generator().manual_seed(k)) for k in (K, N))
    weight_NK = model.block[0].weight.detach()
    off = {dtype: 2.0**-digits / 12**0.5 / (1.5 / 0.6931) ** 0.5 for dtype, (digits, _) in DIGITS.items()}
    found = by_layer(model, x_TK, dy_TN)
    forward, backward = (off[VALUES] ** 2 + off[dtype] ** 2 for dtype in (VALUES, GRADIENTS))
    assert distance(found["y"], x_TK @ weight_NK.T) == pytest.approx(forward**0.5, rel=0.1)
    assert distance(found["dx"], dy_TN @ weight_NK) == pytest.approx(backward**0.5, rel=0.1)
    assert distance(found["dw"], dy_TN.T @ x_TK) == pytest.approx(backward**0.5, rel=0.1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [VALUES, GRADIENTS], ids=str)
@pytest.mark.parametrize("T", [1, 16, 37, 300])
def test_a_tensor_is_rounded_by_the_definition_of_its_format(device: str, dtype: torch.dtype, T: int) -> None:
    x_TK = draw(T, 208, seed=3, device=device, dtype=torch.bfloat16)
    expected_TK, step = round_to(x_TK, dtype)
    found = quantize(x_TK, dtype, turned=True)
    assert found.rows_TK is not None and found.turned_KP is not None
    assert found.step.item() == step.item()
    assert torch.equal(found.rows_TK.double(), expected_TK)
    assert torch.equal(found.turned_KP.double(), F.pad(expected_TK, (0, 0, 0, -T % 16)).T)
    again = quantize(x_TK, dtype, rows=False, turned=True, step=found.step)
    assert again.rows_TK is None and again.turned_KP is not None
    assert torch.equal(again.turned_KP.double(), found.turned_KP.double())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(device: str, bad: float) -> None:
    for spoilt in ("x", "weight", "dy"):
        model = make_linear(32, 48, bias=False, device=device, dtype=torch.bfloat16)
        tensors = {"x": draw(20, 32, seed=1), "dy": draw(20, 48, seed=2), "weight": model.block[0].weight.data}
        tensors[spoilt].flatten()[7] = bad
        found = by_layer(model, tensors["x"].to(device).bfloat16(), tensors["dy"].to(device).bfloat16())
        touched = {"x": ("y", "dw"), "weight": ("y", "dx"), "dy": ("dx", "dw")}[spoilt]
        for name, tensor in found.items():
            assert tensor.isfinite().any() != (name in touched), (spoilt, name)


@pytest.mark.parametrize("device", DEVICES)
def test_zeros_and_the_smallest_numbers_have_a_scale_too(device: str) -> None:
    zeros = quantize(torch.zeros(16, 16, device=device), VALUES)
    assert zeros.step.item() == 1.0 and zeros.rows_TK is not None and not zeros.rows_TK.float().any()
    tiny_TK = torch.full((16, 16), 1e-38, device=device)
    tiny_TK[0, 0] = 0.0
    tiny = quantize(tiny_TK, VALUES)
    assert 0 < tiny.step.item() < LEAST and tiny.rows_TK is not None and tiny.rows_TK.float().isfinite().all()
    model = make_linear(16, 32, device=device)
    assert torch.equal(model(torch.zeros(5, 16, device=device)), model.block[0].bias.expand(5, 32))
    assert find_step(torch.tensor(448.0), 448.0) == 1.0


def test_no_tokens_and_single_ones_pass_through() -> None:
    model = make_linear(16, 32)
    none = model(torch.zeros(0, 16))
    assert none.shape == (0, 32)
    none.sum().backward()
    assert model.block[0].weight.grad is not None and not model.block[0].weight.grad.any()
    x_K = draw(1, 16, seed=1)[0]
    assert torch.equal(model(x_K), F.linear(x_K, model.block[0].weight, model.block[0].bias))
    x_BSK = draw(2, 3, 16, seed=1)
    assert torch.equal(model(x_BSK).flatten(0, 1), model(x_BSK.flatten(0, 1)))
    turned_SBK = x_BSK.transpose(0, 1)
    assert torch.equal(model(turned_SBK), model(turned_SBK.contiguous()))


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_the_kernels_obey_the_formula_in_tritons_interpreter(tmp_path: Path) -> None:
    # The interpreter rounds in a way of its own, so it is given numbers that need no rounding.
    cases: list[dict[str, Any]] = []
    for dtype in DIGITS:
        for wide, T, K in ((torch.bfloat16, 37, 208), (torch.float32, 300, 16), (torch.float32, 16, 144)):
            x_TK = draw(T, K, seed=T).mul(8).to(dtype).to(wide)
            x_TK[3, 5] = torch.finfo(dtype).max / 4
            cases.append({"x": x_TK / 2**9, "dtype": dtype, "rows": T != 16, "turned": True, "step": None})
    known = {"dtype": VALUES, "rows": False, "turned": True, "step": torch.tensor(2.0**-4)}
    cases += [known | {"x": draw(20, 16, seed=1).clamp(-8, 8).to(VALUES).float()}]
    once = {"dtype": VALUES, "rows": True, "turned": False, "step": None}
    spoilt_TK = torch.ones(3, 20, 32)
    spoilt_TK[:, 11, 13] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    cases += [once | {"x": x_TK} for x_TK in (*spoilt_TK, torch.zeros(20, 32))]
    large_TK = torch.zeros(130, 16 * 5000, dtype=torch.bfloat16)  # More than all that look take in one turn.
    large_TK[129, -1] = 896.0
    cases += [once | {"x": large_TK}]
    found_of_all = interpret(Path(__file__).parent / "fp8_main.py", cases, tmp_path)
    for case, (rows_TK, turned_KP, step) in zip(cases, found_of_all, strict=True):
        expected = quantize(case.pop("x"), case.pop("dtype"), **case)
        assert torch.equal(step, expected.step) or (step.isnan() and expected.step.isnan())
        for mine, other in ((rows_TK, expected.rows_TK), (turned_KP, expected.turned_KP)):
            assert (mine is None) == (other is None)
            if mine is not None and other is not None and not step.isnan():
                assert mine.dtype == other.dtype and torch.equal(mine.float(), other.float())


FORMS = {
    "rows": (("rows", "largest"), 2),
    "both": (("rows", "turned", "largest"), 4),
    "turned, of a known scale": (("turned",), 2),
}
"""The pointers that a kernel gets beside its input, and how many stores of 16 bytes a thread has at least."""


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [VALUES, GRADIENTS], ids=str)
def test_the_kernels_compile_and_move_16_bytes_at_once(dtype: torch.dtype, form: str) -> None:
    from omni_parallel import triton_fp8 as kernels

    (pointers, stores), eight = FORMS[form], {VALUES: "*fp8e4nv", GRADIENTS: "*fp8e5"}[dtype]
    types = {"rows": eight, "turned": eight, "largest": "*i32"}
    types = {name: types[name] for name in pointers} | {"step": "*fp32", "x": "*bf16"} | dict.fromkeys("TKPR", "i32")
    constants = dict.fromkeys({"rows", "turned", "largest"} - set(pointers))
    constants |= {"MOST": torch.finfo(dtype).max, "LEAST": LEAST, "LOOKING": kernels._LOOKING}
    constants |= {"TILE_T": kernels._TILE_T, "TILE_K": kernels._TILE_K}
    code = compile_ahead(kernels._quantize, types, constants)
    assert code.count("st.global.v4.b32") >= stores and code.count("ld.global.v4.b32") >= 4
    assert f"cvt.rn.satfinite.{'e4m3' if dtype == VALUES else 'e5m2'}x2.f32" in code
    code = compile_ahead(kernels._largest, {"largest": "*i32", "x": "*bf16", "N": "i32"}, {"BLOCK": kernels._BLOCK})
    assert code.count("ld.global.v4.b32") >= 4


def test_what_several_layers_take_is_quantized_once() -> None:
    model = apply_fp8(make_toy(), PLAN)
    with Count() as forward, torch.no_grad():
        model(make_x())
    # In each of two blocks four tensors come in and seven weights are there.
    assert forward.runs["aten::amax"] == 2 * (4 + 7)
    assert forward.runs["aten::_scaled_mm"] == 2 * 7
    # What is in fp32 already is cast to 8 bits alone: nothing is transposed for gradients that nobody asks for.
    assert forward.runs["aten::_to_copy"] == 2 * (4 + 7)
    with Count() as both:
        gradients(model, make_x())
    # A gradient has its own scale, a weight keeps its.
    assert both.runs["aten::amax"] == 2 * (4 + 7 + 7)
    assert both.runs["aten::_scaled_mm"] == 2 * 7 * 3


def test_blocks_that_are_to_be_compiled_are_refused_with_the_remedy() -> None:
    plan = replace(PLAN, compile=PLAN.blocks)
    with pytest.raises(ValueError, match=r"same tensor, which a compiler does not see. Plan without compile, or leave"):
        apply_fp8(make_toy(), plan)
    with pytest.raises(ValueError) as told:
        apply_fp8(nn.Sequential(nn.ReLU()), ParallelPlan(("0",), compile=("0",)))
    assert "no plain linear layer" in str(told.value) and "Plan without compile" in str(told.value), "both at once"


def test_a_memo_knows_what_has_changed_and_what_is_another() -> None:
    memo, x = Memo(), draw(4, 16, seed=1)
    first = memo.quantize(x, turned=False)
    assert memo.quantize(x, turned=False) is first
    both = memo.quantize(x, turned=True)
    assert both.turned_KP is not None and memo.quantize(x, turned=False) is both
    assert memo.quantize(x.view_as(x), turned=False) is not both
    before = memo.quantize(x, turned=False)
    x.mul_(2)
    after = memo.quantize(x, turned=False)
    assert after.step.item() == 2 * before.step.item()
    memo.clear()
    assert memo.quantize(x, turned=False) is not after
    with torch.inference_mode():
        unseen = draw(4, 16, seed=1)
        step = memo.quantize(unseen, turned=False).step.item()
        unseen.mul_(2)
        assert memo.quantize(unseen, turned=False).step.item() == 2 * step


def eights() -> int:
    """How many tensors of 8 bits are alive."""
    gc.collect()
    return sum(isinstance(x, Tensor) and x.dtype in DIGITS for x in gc.get_objects())


@pytest.mark.filterwarnings("ignore:.*torch.distributed.reduce_op.*:FutureWarning")
@pytest.mark.parametrize("every", [0, 1])
def test_nothing_lingers(every: int) -> None:
    model = recompute_blocks(apply_fp8(make_toy(), PLAN), replace(PLAN, recompute=PLAN.blocks[: 2 * every]))
    with torch.no_grad():
        model(make_x())
    assert eights() == 0
    gradients(model, make_x())
    assert eights() == 0
    with pytest.raises(RuntimeError, match="size"):
        model.layers[0](torch.zeros(2, 24, 16))
    assert eights() == 0


def test_the_backward_pass_holds_one_byte_for_each_number_that_came_in_and_no_weight_in_8_bits() -> None:
    held: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        if x.dtype in DIGITS:
            held[x.data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        apply_fp8(make_toy(), PLAN)(make_x())
    tokens, width = 48, 32
    assert sum(x.numel() for x in held.values()) == 2 * tokens * (3 * width + 2 * width)


@pytest.mark.parametrize(("keep", "times"), [("nothing", 2), ("attention", 2), ("matmuls", 1)])
def test_recomputed_it_is_bit_equal_and_what_is_kept_runs_once(keep: str, times: int) -> None:
    plan = replace(PLAN, recompute=PLAN.blocks, keep=KEPT[keep])
    plain = gradients(apply_fp8(make_toy(bias=True), PLAN), make_x())
    with Count() as count:
        again = gradients(recompute_blocks(apply_fp8(make_toy(bias=True), plan), plan), make_x())
    assert count.runs["aten::_scaled_mm"] == 2 * 7 * (times + 2)
    assert plain.keys() == again.keys()
    for name, grad in plain.items():
        assert torch.equal(grad, again[name]), name


@pytest.mark.filterwarnings("ignore:.*barrier.*:UserWarning")
@pytest.mark.parametrize("shard", [shard_units, shard_fsdp])
def test_sharded_or_alone_it_sees_weights_in_the_dtype_of_compute(mesh: Mesh, shard: Callable[..., Toy]) -> None:
    plain = apply_fp8(make_toy().bfloat16(), PLAN)
    expected = gradients(plain, make_x().bfloat16())
    model = make_toy()
    model.load_state_dict(plain.state_dict())
    found = gradients(shard(apply_fp8(model, PLAN), mesh, PLAN, param_dtype=torch.bfloat16), make_x())
    for name, grad in expected.items():
        mine = found[name]
        assert torch.equal((mine.full_tensor() if isinstance(mine, DTensor) else mine).float(), grad.float()), name


def test_only_plain_linear_layers_of_blocks_whose_features_fit_are_changed() -> None:
    model = make_toy()
    expected = tuple(f"layers.{i}.{name}" for i in range(2) for name in ONES)
    assert find_linears(model, PLAN) == expected
    assert find_linears(model, replace(PLAN, blocks=("layers.1",))) == expected[7:]
    assert find_linears(model, replace(PLAN, experts=("layers.0",))) == expected[7:]
    names = list(model.state_dict())
    assert apply_fp8(model, PLAN) is model and list(model.state_dict()) == names
    assert not find_linears(model, PLAN), "they have forwards of their own"
    for name in ("embed", "head", "layers.0.router", "layers.1.few"):
        assert "forward" not in vars(model.get_submodule(name))


def test_frozen_weights_and_inputs_cost_no_gradients() -> None:
    model = make_linear(32, 48)
    model.block[0].weight.requires_grad_(False)
    x_TK = draw(16, 32, seed=1).requires_grad_()
    with Count() as count:
        model(x_TK).sum().backward()
    assert count.runs["aten::_scaled_mm"] == 2
    assert x_TK.grad is not None and model.block[0].weight.grad is None and model.block[0].bias.grad is not None
    model = make_linear(32, 48)
    with Count() as count:
        model(x_TK.detach()).sum().backward()
    assert count.runs["aten::_scaled_mm"] == 2


def test_where_it_cannot_run_is_told_in_words() -> None:
    model = make_toy()
    assert fp8_problems("cuda", (9, 0), model, PLAN) == fp8_problems("cuda", (8, 9), model, PLAN) == []
    assert fp8_problems("cpu", None, model, PLAN) == [
        "linear=fp8 multiplies 8-bit floats on GPUs, not on cpu: use linear=plain."
    ]
    (old,) = fp8_problems("cuda", (8, 0), model, PLAN)
    assert "8.9 or more" in old and "this one has 8.0" in old
    (odd,) = fp8_problems("cuda", (9, 0), make_toy(24), PLAN)
    assert odd == (
        "linear=fp8: in the 2 blocks of Toy there is no plain linear layer whose features in and out are multiples of "
        "16. Use linear=plain."
    )
    with pytest.raises(ValueError, match="in the 2 blocks of Toy there is no plain linear layer"):
        apply_fp8(make_toy(24), PLAN)
