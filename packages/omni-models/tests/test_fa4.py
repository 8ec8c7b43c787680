"""Laws of FlashAttention-4: exact to the precision of its inputs in either form, and refused by name elsewhere."""

import sys
from itertools import pairwise

import pytest
import torch
from shapes import make_config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from omni_models import attention_problems, build_model, choose_attention, use_attention
from omni_models.attention import eager, fa4
from omni_models.fa4 import fa4_backward, fa4_forward, fa4_problems, find_capability, has_fa4

CASES = {
    "one head a key": {"N": 2, "K": 2},
    "shared keys": {},
    "one key head": {"K": 1},
    "D 128": {"D": 128},
    "D 256": {"D": 256},
    "D 72": {"D": 72},
    "D 96": {"D": 96},
    "D 160": {"D": 160},
    "fp16": {"dtype": torch.float16},
    "both ways": {"is_causal": False},
    "window": {"sliding_window": 37},
    "window both ways": {"sliding_window": 37, "is_causal": False},
    "softcap": {"softcap": 5.0},
    "softcap, window, D 128": {"softcap": 5.0, "sliding_window": 37, "D": 128},
    "softcap, D 256": {"softcap": 5.0, "D": 256},
    "sinks": {"sinks": True},
    "sinks, window": {"sinks": True, "sliding_window": 37},
    "scale": {"scaling": 0.3},
    "smaller values": {"D": 128, "Dv": 64, "N": 2, "K": 2},
    "smaller values, D 192": {"D": 192, "Dv": 128, "N": 2, "K": 2},
    "smaller values, shared keys": {"D": 128, "Dv": 64},
    "larger values, shared keys": {"D": 64, "Dv": 128},
    "much larger values": {"D": 64, "Dv": 256, "N": 2, "K": 2},
}
"""What differs from four query heads on two key heads of 64, causal, in bf16."""
B, S = 2, 288
LENGTHS = {
    "documents": [*(150, 1, 137), *(64, 200, 24)],
    "many documents": [2] * (B * S // 2),
    "rows": [S] * B,
}
# Each pair compiles kernels of its own, so only what the forms do differently is tried in all of them.
PAIRS = [
    *((case, "documents") for case in CASES),
    *((case, "rows") for case in ("shared keys", "window", "softcap", "sinks", "smaller values, shared keys")),
    *((case, "many documents") for case in ("shared keys", "sinks")),
]
READY = has_fa4() and not fa4_problems(torch.bfloat16, find_capability("cuda"), (64, 64), device_type="cuda")


def needs_fa4(test):
    marks = (
        pytest.mark.gpu,
        pytest.mark.skipif(not READY, reason="needs flash-attn-4 and a GPU it runs on"),
        # Its compiler is newer than its kernels, and says so of each.
        pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Argument aux_data:UserWarning"),
    )
    for mark in marks:
        test = mark(test)
    return test


def make_heads(N=4, K=2, D=64, Dv=None, sinks=False, device="cuda", **rest) -> list[Tensor]:
    """Queries, keys, values and sinks in fp32, of values that bf16 and fp16 hold."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(B, N, S, D), (B, K, S, D), (B, K, S, Dv or D)] + [(N,)] * sinks
    return [torch.randn(shape, generator=draw).to(torch.bfloat16).float().to(device) for shape in shapes]


def make_facts(lengths: list[int], device: str = "cuda") -> dict:
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device)
    return {"cu_seqlens": bounds, "max_seqlen": max(lengths)}


def run(attend, heads: list[Tensor], dtype: torch.dtype, **facts) -> list[Tensor]:
    """The output and all gradients, in fp32."""
    q, k, v, *sinks = leaves = [x.to(dtype).requires_grad_() for x in heads]
    facts |= {"s_aux": sinks[0]} if sinks else {}
    out, _ = attend(nn.Identity(), q, k, v, **facts)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [x.detach().float() for x in (out, *torch.autograd.grad(out, leaves, weight))]


def distance(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / y.norm())


@needs_fa4
@pytest.mark.parametrize(("case", "lengths"), PAIRS)
def test_forward_and_gradients_equal_eager_to_the_precision_of_the_dtype(case: str, lengths: str) -> None:
    asked = CASES[case]
    facts = {name: asked[name] for name in ("is_causal", "sliding_window", "softcap", "scaling") if name in asked}
    facts |= make_facts(LENGTHS[lengths])
    heads, dtype = make_heads(**asked), asked.get("dtype", torch.bfloat16)
    if fa4_problems(dtype, find_capability("cuda"), (heads[0].shape[-1], heads[2].shape[-1]), device_type="cuda"):
        pytest.skip("refused on this GPU")
    exact = run(eager, heads, torch.float32, **facts)
    noisy = run(eager, heads, dtype, **facts)
    ours = run(fa4, heads, dtype, **facts)
    assert len(ours) == len(exact) == 4 + asked.get("sinks", False)
    for name, x, y, z in zip(("out", "dq", "dk", "dv", "dsinks"), exact, noisy, ours, strict=False):
        assert torch.isfinite(z).all(), name
        assert distance(z, x) <= 1.5 * distance(y, x) + 1e-3, name


@needs_fa4
def test_dense_and_packed_form_agree() -> None:
    heads = [x.to(torch.bfloat16).transpose(1, 2) for x in make_heads()]
    packed = [x.flatten(0, 1) for x in heads]
    bounds = make_facts(LENGTHS["rows"])["cu_seqlens"]
    asked = (S, 0.125, True, None, None, None, None)
    dense_out, dense_lse = fa4_forward(*heads, None, *asked)
    out, lse = fa4_forward(*packed, bounds, *asked)
    assert distance(out.float(), dense_out.flatten(0, 1).float()) <= 1e-3
    assert distance(lse, dense_lse.transpose(0, 1).flatten(1)) <= 1e-4
    dense = fa4_backward(dense_out, *heads, dense_out, dense_lse, None, *asked)
    grads = fa4_backward(out, *packed, out, lse, bounds, *asked)
    for x, y in zip(grads[:3], dense[:3], strict=True):
        assert distance(x.float(), y.flatten(0, 1).float()) <= 2e-3


@needs_fa4
@pytest.mark.parametrize("offset", [0, 8, 1], ids=["aligned", "aligned, shifted", "unaligned"])
@pytest.mark.parametrize("lengths", ["documents", "rows"])
def test_views_of_one_fused_tensor_give_what_copies_give(lengths: str, offset: int) -> None:
    N, K, D = 4, 2, 64
    draw = torch.Generator().manual_seed(0)
    fused = torch.randn(B, S, (N + 2 * K) * D + 16, generator=draw).to(device="cuda", dtype=torch.bfloat16)
    pieces = fused[..., offset : offset + (N + 2 * K) * D].split([N * D, K * D, K * D], dim=-1)
    views = [piece.unflatten(-1, (-1, D)).transpose(1, 2) for piece in pieces]
    grads = []
    for heads in (views, [x.contiguous() for x in views]):
        leaves = [x.detach().requires_grad_() for x in heads]
        assert [x.stride() for x in leaves] == [x.stride() for x in heads]
        out, _ = fa4(nn.Identity(), *leaves, **make_facts(LENGTHS[lengths]))
        grads.append([out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out).contiguous())])
    assert torch.equal(grads[0][0], grads[1][0])
    assert all(distance(x.float(), y.float()) <= 2e-3 for x, y in zip(*grads, strict=True))


@needs_fa4
def test_nothing_leaks_between_documents() -> None:
    heads, facts = make_heads(), make_facts(LENGTHS["documents"])
    before = run(fa4, heads, torch.bfloat16, **facts)[0].flatten(0, 1)
    bounds = facts["cu_seqlens"].tolist()
    start, stop = list(pairwise(bounds))[4]  # It lies in the second row.
    for x in heads:
        x[1, :, start - S : stop - S] += 1.0
    moved = (run(fa4, heads, torch.bfloat16, **facts)[0].flatten(0, 1) != before).flatten(1).any(1)
    assert moved[start:stop].all()
    assert not moved[:start].any()
    assert not moved[stop:].any()


@needs_fa4
@pytest.mark.parametrize("lengths", ["documents", "rows"])
def test_gradients_repeat_to_the_bit_where_torch_is_deterministic(lengths: str) -> None:
    heads, facts = make_heads(), make_facts(LENGTHS[lengths])
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run(fa4, heads, torch.bfloat16, **facts) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@needs_fa4
@pytest.mark.parametrize("lengths", [None, "documents"])
@pytest.mark.parametrize("sinks", [False, True])
def test_the_operators_keep_the_contract_of_torch(lengths: str | None, sinks: bool) -> None:
    q, k, v, *sink = make_heads(sinks=sinks)
    heads = [x.to(torch.bfloat16).transpose(1, 2) for x in (q, k, v)]
    heads = heads if lengths is None else [x.flatten(0, 1) for x in heads]
    bounds = None if lengths is None else make_facts(LENGTHS[lengths])["cu_seqlens"]
    longest = S if lengths is None else max(LENGTHS[lengths])
    rest = (bounds, longest, 0.125, True, None, None, None, sink[0] if sink else None)
    out, lse = fa4_forward(*heads, *rest)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(fa4_forward, (*(x.requires_grad_() for x in heads), *rest), test_utils=checks)
    torch.library.opcheck(fa4_backward, (out, *(x.detach() for x in heads), out, lse, *rest), test_utils=checks)


@needs_fa4
def test_it_is_chosen_where_it_fits() -> None:
    for family in ("llama", "gemma2", "gpt_oss"):
        assert choose_attention(build_model(make_config(family), device="meta"), "cuda", torch.bfloat16) == "fa4"


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("sinks", [False, True])
def test_shapes_are_known_without_a_gpu(dense: bool, sinks: bool) -> None:
    with FakeTensorMode():
        tokens = (B, S) if dense else (B * S,)
        shapes = [(*tokens, 4, 64), (*tokens, 2, 64), (*tokens, 2, 32)]
        heads = [torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
        bounds = None if dense else torch.zeros(9, dtype=torch.int32)
        sink_N = torch.randn(4, requires_grad=True) if sinks else None
        out, lse = fa4_forward(*heads, bounds, S, 0.125, True, None, None, None, sink_N)
        assert (out.shape, out.dtype) == ((*tokens, 4, 32), torch.bfloat16)
        assert (lse.shape, lse.dtype) == ((B, 4, S) if dense else (4, B * S), torch.float32)
        assert not lse.requires_grad
        out.sum().backward()
        leaves = heads + [sink_N] * sinks
        assert [(x.grad.shape, x.grad.dtype) for x in leaves] == [(x.shape, x.dtype) for x in leaves]


def test_it_goes_by_the_name_that_recomputation_keeps() -> None:
    assert torch.ops.omni.fa4_forward.default.name() == "omni::fa4_forward"


@pytest.mark.parametrize(
    ("dtype", "capability", "dims", "why"),
    [
        (torch.bfloat16, (9, 0), (128, 128), None),
        (torch.float16, (9, 0), (72, 72), None),
        (torch.bfloat16, (9, 0), (192, 128), None),
        (torch.bfloat16, (9, 0), (256, 256), None),
        (torch.bfloat16, (10, 0), (192, 128), None),
        (torch.float32, (9, 0), (64, 64), "not torch.float32 on one of 9.0"),
        (torch.bfloat16, (8, 0), (64, 64), "not torch.bfloat16 on one of 8.0"),
        (torch.bfloat16, (12, 0), (64, 64), "not torch.bfloat16 on one of 12.0"),
        (torch.bfloat16, None, (64, 64), "not torch.bfloat16 on cpu"),
        (torch.bfloat16, (9, 0), (512, 512), "heads of up to 256 on this GPU, not 512 and 512"),
        (torch.bfloat16, (9, 0), (64, 20), None),
        (torch.bfloat16, (10, 0), (256, 256), "heads of up to 128 on this GPU, not 256 and 256"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(dtype, capability, dims, why: str | None) -> None:
    problems = fa4_problems(dtype, capability, dims, device_type="cuda" if capability else "cpu")
    assert len(problems) == (why is not None)
    assert why is None or why in problems[0]


def test_dropout_and_other_devices_are_refused() -> None:
    heads = [x.to(torch.bfloat16) for x in make_heads(device="cpu")]
    with pytest.raises(ValueError, match="fa4 attention has no dropout, which this model asks for: use eager"):
        fa4(nn.Identity(), *heads, dropout=0.1)
    with pytest.raises(ValueError, match=r"not torch.bfloat16 on cpu\. Use sdpa, or eager"):
        fa4(nn.Identity(), *heads)
    model = build_model(make_config("llama", attention_dropout=0.1), device="meta")
    assert "fa4 attention has no dropout" in attention_problems(model, "fa4", "cuda", torch.bfloat16)[0]


def test_every_attention_of_a_model_must_fit() -> None:
    model = build_model(make_config("deepseek_v3"), device="meta")
    dims = {problem for problem in attention_problems(model, "varlen", "cuda", torch.bfloat16) if "heads" in problem}
    assert dims == set()
    model.model.layers[1].self_attn.qk_head_dim = 264
    dims = {problem for problem in attention_problems(model, "varlen", "cuda", torch.bfloat16) if "heads" in problem}
    assert dims == {"varlen attention needs heads of a multiple of 8 up to 256, not 264: use sdpa."}


@pytest.mark.skipif(has_fa4(), reason="flash-attn-4 is installed")
def test_where_it_is_missing_an_error_says_how_to_install_it() -> None:
    model = build_model(make_config("llama"), device="meta")
    problems = attention_problems(model, "fa4", "cuda", torch.bfloat16)
    assert "flash-attn-4, which is not installed: uv sync --all-packages --extra fa4." in problems[0]
    assert choose_attention(model, "cuda", torch.bfloat16) == "varlen"
    assert use_attention(build_model(make_config("llama"), device="meta"), "fa4") is not None


def test_looking_for_it_imports_nothing(tmp_path, monkeypatch) -> None:
    loaded = "flash_attn.cute" in sys.modules
    place = tmp_path / "flash_attn" / "cute"
    place.mkdir(parents=True)
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert not has_fa4()
    (place / "interface.py").write_text("raise RuntimeError('imported')")
    assert has_fa4()
    assert ("flash_attn.cute" in sys.modules) == loaded
