"""Laws of the optimizer: torch's AdamW, whatever the dtype of gradients, and their scale with it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from interpret import compile_ahead, interpret
from torch import Tensor, nn

from omni_parallel import TrainState, state_tree
from omni_parallel.adamw import AdamW, correct
from omni_parallel.casts import kept_cast
from omni_parallel.fsdp import apply_cast
from omni_parallel.rounding import Throw, round_moments

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
CUDA = torch.cuda.is_available()
SIZES = ((3, 1000), (7,), (0, 4), (2049,))


def train(kind: type[torch.optim.AdamW], grads: torch.dtype, scale: float | None, device: str) -> list[Tensor]:
    """Parameters and moments after three steps; torch's AdamW gets gradients widened and scaled."""
    random = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(size, generator=random).to(device)) for size in SIZES]
    optimizer = kind(params, **SETTINGS) if kind is AdamW else kind(params, **SETTINGS, fused=True)
    for _ in range(3):
        for param in params:
            grad = torch.randn(param.shape, generator=random).to(device, grads)
            if kind is AdamW:
                param.grad_dtype = None
                param.grad = grad
            else:
                param.grad = grad.float() * (1 if scale is None else scale)
        if kind is AdamW:
            optimizer.step(scale=None if scale is None else torch.tensor(scale, device=device))  # pyright: ignore[reportCallIssue]
        else:
            optimizer.step()
    kept = [optimizer.state[param][key] for param in params for key in ("exp_avg", "exp_avg_sq", "step")]
    return [tensor.detach() for tensor in (*params, *kept)]


def compare(grads: torch.dtype, scale: float | None, device: str) -> None:
    ours, theirs = train(AdamW, grads, scale, device), train(torch.optim.AdamW, grads, scale, device)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [None, 0.25])
@pytest.mark.parametrize("grads", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_that_of_torch_with_gradients_widened_and_scaled(grads: torch.dtype, scale: float | None) -> None:
    compare(grads, scale, "cpu")


def test_a_state_that_torch_would_widen_is_put_back_by_restore_state() -> None:
    param = nn.Parameter(torch.zeros(3))
    optimizer = AdamW([param], state_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"put it back by restore_state\(state, tree\)"):
        optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[param]["exp_avg"].dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("scale", [None, 0.25])
@pytest.mark.parametrize("grads", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_it_is_that_of_torch(grads: torch.dtype, scale: float | None) -> None:
    compare(grads, scale, "cuda")


def by_formula(case: dict[str, Any]) -> list[Tensor]:
    """The same in fp64, and the squares of gradient and parameter."""
    p, g, m, v, _ = (tensor.double() for tensor in case["held"])
    if case["scale"] is not None and case["scale"].isnan():
        return [p, m, v, g.square().sum() + p.square().sum()]
    s, step = case["settings"], case["step"]
    beta1, beta2 = s["betas"]
    g = g if case["scale"] is None else g * case["scale"].double()
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    whole_m, whole_v = m / (1 - beta1**step), v / (1 - beta2**step)
    p = p - s["lr"] * s["weight_decay"] * p - s["lr"] * whole_m / (whole_v.sqrt() + s["eps"])
    return [p, m, v, sum(x.double().square().sum() for x in case["held"][:2])]  # pyright: ignore[reportReturnType]


def draw(
    grads: torch.dtype, scale: float | None, beta1: float, beta2: float, step: float, numbers: int = 3001
) -> dict[str, Any]:
    random = torch.Generator().manual_seed(1)
    p, g, m, v = torch.randn(4, numbers, generator=random)
    return {
        "held": (p, g.to(grads), m, v.square(), correct([torch.tensor(step)], beta1, beta2)[0]),
        "step": step,
        "scale": None if scale is None else torch.tensor(scale),
        "cast": grads == torch.bfloat16,
        "throw": {"steps": torch.tensor(step), "param": 0, "shard": 0},
        "settings": {"lr": 1e-2, "betas": (beta1, beta2), "eps": 1e-8, "weight_decay": 0.1},
    }


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_the_kernels_obey_the_formula_in_tritons_interpreter(tmp_path: Path) -> None:
    cases = [
        draw(torch.float32, None, 0.9, 0.95, 1.0),
        draw(torch.bfloat16, 0.3, 0.9, 0.999, 2.0),
        draw(torch.float32, 0.3, 0.0, 0.9999, 1.0),
        draw(torch.bfloat16, float("nan"), 0.9, 0.95, 1.0),
    ]
    found_of_all = interpret(Path(__file__).parent / "adamw_main.py", cases, tmp_path)
    for case, found in zip(cases, found_of_all, strict=True):
        for mine, exact in zip(found, by_formula(case), strict=True):
            assert torch.allclose(mine.double(), exact, rtol=1e-5, atol=1e-6)


def cut(case: dict[str, Any], numbers: int, param: int, off: int = 0) -> dict[str, Any]:
    """The first `numbers` of `case`, as of parameter `param`."""
    *tensors, correction = case["held"]
    what = {"throw": case["throw"] | {"param": param}, "off": off, "squares": False}
    return case | what | {"held": (*(x[:numbers] for x in tensors), correction)}


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_many_that_are_moved_at_once_move_as_each_does_alone(tmp_path: Path) -> None:
    span = 16 * 1024
    kinds = [draw(dtype, 0.3, 0.9, 0.999, 3.0, span + 5) for dtype in (torch.float32, torch.bfloat16)]
    kinds += [narrow(kinds[1]), draw(torch.bfloat16, 0.3, 0.9, 0.999, 5.0, 2048)]
    shapes = [(0, span + 5), (2, span), (2, 1), (1, 0), (2, 1025), (3, 2048), (2, 1024)]
    cases = [cut(kinds[kind], numbers, param) for param, (kind, numbers) in enumerate(shapes)]
    cases += [cut(kinds[kind], 2047, 9, off=1) for kind in range(4)]
    main = Path(__file__).parent / "adamw_main.py"
    together = interpret(main, cases, tmp_path)
    # Between two of them settings differ, so that none is moved with another.
    other = cases[0] | {"settings": cases[0]["settings"] | {"lr": 0.5}}
    by_one = interpret(main, [case for each in cases for case in (each, cut(other, 1, 0))], tmp_path)[::2]
    for mine, expected in zip(together, by_one, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(mine, expected, strict=True))


def narrow(case: dict[str, Any]) -> dict[str, Any]:
    """`case` with moments that bf16 has."""
    p, g, m, v, correction = case["held"]
    return case | {"held": (p, g, m.bfloat16(), v.bfloat16(), correction)}


def widen(case: dict[str, Any]) -> dict[str, Any]:
    """`case` with the same moments in fp32."""
    p, g, m, v, correction = case["held"]
    return case | {"held": (p, g, m.float(), v.float(), correction)}


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_moments_in_bf16_are_those_of_fp32_rounded_by_their_dice(tmp_path: Path) -> None:
    places = [
        {"steps": torch.tensor(1.0), "param": 0, "shard": 0},
        {"steps": torch.tensor(123457.0), "param": 300, "shard": 7},
        {"steps": torch.tensor(2.0**24 - 1), "param": 16, "shard": 1, "start": (1 << 34) + 4096},
    ]
    kinds = [(torch.float32, None), (torch.bfloat16, 0.3), (torch.bfloat16, 0.3), (torch.bfloat16, float("nan"))]
    cases = [
        narrow(draw(*kind, 0.9, 0.999, 2.0)) | {"throw": place}
        for kind, place in zip(kinds, [*places, places[0]], strict=True)
    ]
    found_of_all = interpret(Path(__file__).parent / "adamw_main.py", [*cases, *map(widen, cases)], tmp_path)
    for case, found, wide in zip(cases, found_of_all, found_of_all[len(cases) :], strict=False):
        assert torch.equal(found[0], wide[0]), "a parameter moves by what was not rounded yet"
        expected = round_moments(wide[1], wide[2], Throw(**case["throw"]))
        for mine, other, before in zip(found[1:3], expected, case["held"][2:], strict=False):
            assert mine.dtype == torch.bfloat16 and torch.equal(mine, other)
            assert torch.equal(mine, before) == (case["scale"] is not None and bool(case["scale"].isnan()))


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(("moments", "width"), [("float32", 4), ("bfloat16", 2)])
def test_the_kernel_compiles_and_moves_as_much_as_four_numbers_are_at_once(moments: str, width: int) -> None:
    import triton.language as tl

    from omni_parallel import triton_adamw

    pointers = {"table": "*i64", "whose": "*i64", "corrections": "*fp32", "scale": "*fp32"}
    settings = dict.fromkeys(("lr", "keep", "new1", "new2", "eps"), "fp32")
    kinds = {"GRAD": tl.bfloat16, "MOMENT": getattr(tl, moments), "CAST": tl.bfloat16}
    sizes = {"ALIGNED": True, "COLUMNS": 13, "SPAN": triton_adamw._SPAN, "BLOCK": triton_adamw._BLOCK}
    code = compile_ahead(triton_adamw._adamw, pointers | settings, kinds | sizes)
    assert code.count(f"ld.global.v{width}.b32") >= 2 and code.count(f"st.global.v{width}.b32") >= 2
    assert "shared" not in code, "a thread throws for its own four numbers"
    thrown = code.count("mul.hi.u32")
    assert thrown == 0 if width == 4 else 0 < thrown <= 40, "two products a round, for four numbers, in either branch"


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(("kind", "loads"), [("float32", 2), ("bfloat16", 1)])
def test_the_kernel_of_the_norm_compiles_and_reads_16_bytes_at_once(kind: str, loads: int) -> None:
    import triton.language as tl

    from omni_parallel import triton_norm

    sizes = {"KIND": getattr(tl, kind), "ALIGNED": True, "PROGRAMS": triton_norm._PROGRAMS, "BLOCK": triton_norm._BLOCK}
    code = compile_ahead(triton_norm._square_sum, {"sums": "*fp32", "table": "*i64"}, sizes)
    assert code.count("ld.global.v4.b32") == loads


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("off", [0, 1])
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16], ids=str)
def test_on_a_gpu_many_that_are_moved_at_once_move_as_each_does_alone(
    state_dtype: torch.dtype | None, off: int
) -> None:
    def train(together: bool) -> list[Tensor]:
        random = torch.Generator().manual_seed(0)
        params = [
            nn.Parameter(torch.randn(n + off, generator=random).cuda()[off:]) for n in (1 << 20, 16389, 1025, 7, 0)
        ]
        optimizer = AdamW(params, **SETTINGS, state_dtype=state_dtype)
        grads = [torch.randn(param.shape, generator=random).cuda().bfloat16() for param in params]
        scale = torch.tensor(0.5, device="cuda")
        for some in [list(range(len(params)))] if together else [[i] for i in range(len(params))]:
            for i, param in enumerate(params):
                param.grad_dtype = None
                param.grad = grads[i] if i in some else None
            optimizer.step(scale=scale)
        return [*params, *(optimizer.state[param][key] for param in params for key in ("exp_avg", "exp_avg_sq"))]

    assert all(torch.equal(mine, other) for mine, other in zip(train(True), train(False), strict=True))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16], ids=str)
def test_a_scale_that_is_not_a_number_changes_nothing(
    device: str, steps_before: int, state_dtype: torch.dtype | None
) -> None:
    if device == "cuda" and not CUDA:
        pytest.skip("needs a CUDA device")
    params = [nn.Parameter(torch.randn(size, device=device)) for size in SIZES]
    optimizer = AdamW(params, **SETTINGS, state_dtype=state_dtype)
    for scale in [1.0] * steps_before + [float("nan")]:
        for param in params:
            param.grad_dtype = None
            param.grad = torch.full_like(param, torch.nan if scale != scale else 1.0, dtype=torch.bfloat16)  # noqa: PLR0124
        held = [*params, *(value for param in params for value in optimizer.state[param].values())]
        before = [tensor.detach().clone() for tensor in held]  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step(scale=torch.tensor(scale, device=device), keep_casts=True)
    assert all(torch.equal(tensor, was) for tensor, was in zip(held, before, strict=True))  # pyright: ignore[reportArgumentType, reportPossiblyUnboundVariable]
    for param in params:
        cast = kept_cast(param)
        assert cast is not None and torch.equal(cast, param.bfloat16())


def narrow_ones(device: str, n: int, **how: Any) -> tuple[nn.Parameter, AdamW]:
    """A parameter of `n` numbers whose moments, in bf16, are ones."""
    param = nn.Parameter(torch.zeros(n, device=device))
    optimizer = AdamW([param], **SETTINGS | {"betas": (0.999, 0.999)}, state_dtype=torch.bfloat16, **how)
    for key in ("exp_avg", "exp_avg_sq"):
        optimizer.state[param][key].fill_(1)
    return param, optimizer


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_moment_that_the_nearest_would_freeze_moves_on_average(device: str) -> None:
    if device == "cuda" and not CUDA:
        pytest.skip("needs a CUDA device")
    n, steps = 1 << 16, 30
    param, optimizer = narrow_ones(device, n)
    moved = 0.999
    assert torch.tensor(moved).bfloat16() == 1, "below one the next is 2**-8 away"
    for _ in range(steps):
        param.grad = torch.zeros_like(param)
        optimizer.step()
    for key in ("exp_avg", "exp_avg_sq"):
        found = optimizer.state[param][key]
        assert found.dtype == torch.bfloat16
        # Each step rounds with a deviation of at most half of 2**-8, independent of the others.
        sigma = 0.5 * 2**-8 * (steps / n) ** 0.5
        assert abs(found.double().mean().item() - moved**steps) < 5 * sigma, key


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_step_rounds_what_moments_in_fp32_would_be(device: str) -> None:
    if device == "cuda" and not CUDA:
        pytest.skip("needs a CUDA device")
    after: list[tuple[list[nn.Parameter], AdamW]] = []
    for state_dtype in (None, torch.bfloat16):
        random = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(size, generator=random).to(device)) for size in SIZES]
        optimizer = AdamW(params, **SETTINGS, state_dtype=state_dtype)
        for param in params:
            param.grad = torch.randn(param.shape, generator=random).to(device)
        optimizer.step()
        after.append((params, optimizer))
    (wide, ours), (narrow, theirs) = after
    for number, (param, other) in enumerate(zip(wide, narrow, strict=True)):
        assert torch.equal(param, other)
        own, found = ours.state[param], theirs.state[other]
        expected = round_moments(own["exp_avg"], own["exp_avg_sq"], Throw(own["step"], number, 0))
        assert torch.equal(found["exp_avg"], expected[0]) and torch.equal(found["exp_avg_sq"], expected[1])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_each_parameter_and_step_throws_for_itself(device: str) -> None:
    if device == "cuda" and not CUDA:
        pytest.skip("needs a CUDA device")
    params = [nn.Parameter(torch.zeros(1 << 12, device=device)) for _ in range(3)]
    optimizer = AdamW(params, **SETTINGS, state_dtype=torch.bfloat16)
    seen: list[Tensor] = []
    for _ in range(2):
        for param in params[:2]:
            param.grad = torch.full_like(param, 0.1)
            optimizer.state[param]["exp_avg"].zero_()
        params[2].grad = None
        optimizer.step()
        seen += [optimizer.state[param]["exp_avg"].clone() for param in params[:2]]
    ups = [x > x.min() for x in seen]
    # Two that have nothing to do with each other are alike as often as chance has it.
    shares = [(one == other).double().mean().item() for i, one in enumerate(ups) for other in ups[:i]]
    even = [up.double().mean().item() for up in ups]
    chance = [a * b + (1 - a) * (1 - b) for i, a in enumerate(even) for b in even[:i]]
    assert all(abs(share - by) < 5 * 0.5 / (1 << 6) for share, by in zip(shares, chance, strict=True))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_moments_in_bf16_take_half_the_bytes(device: str) -> None:
    if device == "cuda" and not CUDA:
        pytest.skip("needs a CUDA device")
    params = [nn.Parameter(torch.randn(size, device=device)) for size in SIZES]

    def held(state_dtype: torch.dtype | None) -> int:
        state = AdamW(params, **SETTINGS, state_dtype=state_dtype).state
        return sum(state[param][key].nbytes for param in params for key in ("exp_avg", "exp_avg_sq"))

    numbers = sum(param.numel() for param in params)
    assert (held(None), held(torch.bfloat16)) == (8 * numbers, 4 * numbers)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_squares_are_summed_exactly(dtype: torch.dtype) -> None:
    from omni_parallel import triton_norm

    tensors = [torch.randn(size, device="cuda").to(dtype) for size in ((3, 1000), (7,), (5000, 1030))]
    exact = sum(tensor.double().square().sum().item() for tensor in tensors)
    assert triton_norm.square_sum(tensors).item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_kept_cast_is_the_parameter_after_the_step(device: str) -> None:
    if device == "cuda" and not CUDA:
        pytest.skip("needs a CUDA device")
    module = nn.Linear(30, 20, bias=False).to(device)
    optimizer = AdamW(module.parameters(), **SETTINGS)
    param = module.weight
    apply_cast(module, torch.bfloat16)
    x = torch.randn(5, 30, device=device).bfloat16()

    def learn(keep: bool) -> Tensor | None:
        param.grad = None
        module(x).sum().backward()
        optimizer.step(keep_casts=keep)
        return kept_cast(param)

    first = learn(True)
    assert first is not None and torch.equal(first, param.bfloat16())
    assert torch.equal(module(x), nn.functional.linear(x, param.bfloat16())), "and is what a call sees"
    second = learn(True)
    assert second is first and torch.equal(second, param.bfloat16()), "the same memory, a step on"
    assert learn(False) is None, "a step that was not asked to keep one leaves none behind"
    learn(True)
    state_tree(TrainState(1, module, optimizer))
    assert kept_cast(param) is None, "nor does a tree, into which others may write"


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("grads", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16], ids=str)
def test_on_a_gpu_the_host_never_waits_for_an_update(grads: torch.dtype, state_dtype: torch.dtype | None) -> None:
    params = [nn.Parameter(torch.randn(size, device="cuda")) for size in SIZES]
    optimizer, scale = AdamW(params, **SETTINGS, state_dtype=state_dtype), torch.tensor(0.5, device="cuda")
    for mode in ("default", "error"):  # The first step makes the moments.
        for param in params:
            param.grad_dtype = None
            param.grad = torch.ones_like(param, dtype=grads)
        torch.cuda.set_sync_debug_mode(mode)
        try:
            optimizer.step(scale=scale, keep_casts=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
