"""Laws of gated MLPs with padded weights: they compute the same, and only where nothing misses the modules."""

import copy
from functools import partial

import pytest
import torch
from senses import make_config
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoModelForImageTextToText
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLMLP

from omni_models.gated import gelu_mul, silu_mul
from omni_models.kernels import _fuse_gated, describe_kernels
from omni_models.padded import gated_mlp, is_plain, pad_width, pads
from omni_models.proofs import prove_gated


def make_mlp(inner: int, *, bias: bool, act: str = "silu") -> Qwen2_5_VLMLP:
    torch.manual_seed(0)
    config = make_config("qwen2_5_vl").vision_config
    config.intermediate_size, config.hidden_act = inner, act
    return Qwen2_5_VLMLP(config, bias=bias)


def run(forward, mlp: nn.Module) -> dict[str, Tensor]:
    """What comes out for one input, and all gradients."""
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = forward(x)
    params = dict(mlp.named_parameters())
    grads = torch.autograd.grad(out, [x, *params.values()], torch.cos(out.detach() * 50))
    return {"out": out.detach()} | dict(zip(["x", *params], grads, strict=True))


def equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].shape == value.shape, name
        assert (got[name] - value).abs().max() <= 1e-6 * value.abs().max(), name


@pytest.mark.parametrize("width", [21, 64, 128])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("act", "act_mul"), [("silu", silu_mul), ("gelu_pytorch_tanh", gelu_mul)])
def test_padding_changes_neither_values_nor_gradients(act: str, act_mul, bias: bool, width: int) -> None:
    mlp, widths = make_mlp(21, bias=bias, act=act), []

    def seen(gate: Tensor, up: Tensor) -> Tensor:
        widths.append(gate.shape[-1])
        out = act_mul(gate, up)
        assert not out[..., 21:].any()
        return out

    linears = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    equal(run(partial(gated_mlp, linears=linears, act_mul=seen, width=width), mlp), run(mlp, mlp))
    assert widths == [width]


@pytest.mark.parametrize(("inner", "width"), [(1, 64), (8, 8), (3416, 3416), (3420, 3456), (3457, 3520), (3456, 3456)])
def test_only_rows_that_are_not_read_whole_are_padded(inner: int, width: int) -> None:
    assert pad_width(inner) == width


@pytest.mark.parametrize(("inner", "suits", "width"), [(21, True, 64), (24, True, 24), (21, False, 21)])
def test_a_fused_forward_pads_where_that_suits(inner: int, suits: bool, width: int) -> None:
    mlp, widths = make_mlp(inner, bias=True), []

    def seen(gate: Tensor, up: Tensor) -> Tensor:
        widths.append(gate.shape[-1])
        return silu_mul(gate, up)

    with torch.no_grad():
        gated = prove_gated(mlp)
    assert not isinstance(gated, str) and gated.inner == inner
    forward = _fuse_gated(gated, seen, lambda x, *linears: suits and all(map(is_plain, linears)))
    equal(run(partial(forward, mlp), mlp), run(mlp, mlp))
    assert widths == [width]
    mlp.up_proj.register_forward_hook(lambda module, args, out: 2 * out)
    equal(run(partial(forward, mlp), mlp), run(mlp, mlp))
    assert widths == [width, inner], "a hook has to see the module called"


def test_the_cpu_and_32_bits_need_no_padding() -> None:
    mlp = make_mlp(21, bias=True)
    for dtype in (torch.float32, torch.bfloat16):
        assert not pads(torch.zeros(1, 16, dtype=dtype), mlp.gate_proj)


class Adapted(nn.Linear):
    """As adapters are: more than a product."""


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Narrow(Tensor):
    """As weights in 8 bits are: a tensor of a class of its own."""


def forget(linear: nn.Linear) -> nn.Module:
    linear.forward = linear.forward
    return linear


def narrowed(linear: nn.Linear) -> nn.Module:
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Narrow))
    return linear


def hooked(name: str, linear: nn.Linear) -> nn.Module:
    getattr(linear, f"register_{name}")(lambda *args: None)
    return linear


@pytest.mark.parametrize(
    "change",
    [
        *(partial(hooked, name) for name in ("forward_hook", "forward_pre_hook")),
        *(partial(hooked, name) for name in ("full_backward_hook", "full_backward_pre_hook")),
        lambda linear: parametrize.register_parametrization(linear, "weight", Scaled()),
        lambda linear: Adapted(16, 21),
        forget,
        narrowed,
    ],
)
def test_what_is_more_than_a_linear_is_called_as_a_module(change) -> None:
    assert is_plain(nn.Linear(16, 21)) and is_plain(nn.Linear(16, 21, bias=False))
    assert not is_plain(change(nn.Linear(16, 21)))


def test_padding_is_told_of() -> None:
    config = make_config("qwen2_5_vl")
    config.vision_config.intermediate_size = 3420
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    words = describe_kernels(model, device_type="cuda")
    assert words["Qwen2_5_VLMLP"] == "swiglu (SiLU, 3,420 features padded to 3,456 in 16 bits)"
    assert words["Qwen2MLP"] == "swiglu (SiLU)"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_on_a_gpu_16_bits_are_padded_and_as_exact(bias: bool, dtype: torch.dtype) -> None:
    exact, widths = make_mlp(21, bias=bias).cuda(), []
    plain, padded = (copy.deepcopy(exact).to(dtype) for _ in range(2))

    def seen(gate: Tensor, up: Tensor) -> Tensor:
        widths.append(gate.shape[-1])
        return silu_mul(gate, up)

    with torch.no_grad():
        gated = prove_gated(exact)
    assert not isinstance(gated, str)
    forward = _fuse_gated(gated, seen)
    x = torch.randn(64, 16, device="cuda", dtype=dtype)
    outs = []
    for mlp, call in ((exact, exact), (plain, plain), (padded, partial(forward, padded))):
        out = call(x.to(next(mlp.parameters()).dtype))
        out.float().cos().sum().backward()
        outs.append([out.detach(), *(param.grad for param in mlp.parameters())])
    for want, by_module, got in zip(*outs, strict=True):
        assert got.shape == want.shape and got.dtype == dtype
        assert (got - want).norm() <= 1.5 * (by_module - want).norm() + 1e-3 * want.norm()
    assert widths == [64]
