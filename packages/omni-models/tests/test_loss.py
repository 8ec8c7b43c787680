"""Laws of the loss: chunked equals full, in value and every gradient, and what would be wrong is refused."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import FAMILIES, interpret, make_config
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from omni_models import build_model, choose_loss, count_targets, summed_loss, use_attention
from omni_models.loss import chunk_tokens, chunked_cross_entropy

CHANGES_LOGITS = {"gemma2", "cohere", "granite"}


def make_batch() -> tuple[dict[str, Tensor], Tensor]:
    ids_BS = torch.randint(0, 80, (2, 17), generator=torch.Generator().manual_seed(0))
    labels_BS = torch.cat([ids_BS[:, 1:], torch.full((2, 1), -100)], dim=1)
    labels_BS[0, 3:6] = -100
    return {"input_ids": ids_BS}, labels_BS


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_and_its_gradients_are_those_of_plain_transformers(family: str) -> None:
    config = make_config(family)
    ours = build_model(config)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    plain.load_state_dict(ours.state_dict())
    plain.train()
    inputs, labels_BS = make_batch()
    ours = use_attention(ours, "eager")
    loss = summed_loss(ours, inputs, labels_BS)
    expected = nn.functional.cross_entropy(
        plain(**inputs, use_cache=False).logits.flatten(0, 1), labels_BS.flatten(), reduction="sum"
    )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    for (name, mine), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            assert (mine.grad - theirs.grad).abs().max() <= 1e-5 * max(1e-3, theirs.grad.abs().max()), name


@pytest.mark.parametrize("family", FAMILIES)
def test_full_logits_are_chosen_where_the_model_changes_them(family: str) -> None:
    model = build_model(make_config(family), device="meta")
    assert choose_loss(model) == ("full" if family in CHANGES_LOGITS else "chunked")


def test_a_scale_of_one_is_a_scale() -> None:
    assert choose_loss(build_model(make_config("granite", logits_scaling=1.0), device="meta")) == "full"


@pytest.mark.parametrize("family", sorted(CHANGES_LOGITS))
def test_the_chunked_loss_is_refused_where_it_would_be_wrong(family: str) -> None:
    inputs, labels_BS = make_batch()
    with pytest.raises(ValueError, match="computes with its logits after the head"):
        summed_loss(build_model(make_config(family)), inputs, labels_BS, impl="chunked")


def test_logits_changed_in_place_are_noticed() -> None:
    model = build_model(make_config("llama"))
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits.mul_(2.0))
    inputs, labels_BS = make_batch()
    with pytest.raises(ValueError, match="computes with its logits after the head"):
        summed_loss(model, inputs, labels_BS, impl="chunked")


def test_the_head_is_itself_again_afterwards() -> None:
    model = build_model(make_config("llama")).eval()
    inputs, labels_BS = make_batch()
    before = model(**inputs).logits
    summed_loss(model, inputs, labels_BS)
    with pytest.raises(ValueError, match=r"\[2, 16\] labels met \[2, 17\] hidden states"):
        summed_loss(model, inputs, labels_BS[:, 1:])
    assert torch.equal(model(**inputs).logits, before)


@given(
    tokens=st.integers(1, 23),
    vocab=st.integers(2, 19),
    chunk=st.integers(1, 25),
    bias=st.booleans(),
    ignored=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_any_chunk_gives_the_same_loss_and_gradients(
    *, tokens: int, vocab: int, chunk: int, bias: bool, ignored: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(tokens, 6, generator=draw), torch.randn(vocab, 6, generator=draw)
    inputs = [hidden, weight] + ([torch.randn(vocab, generator=draw)] if bias else [])
    labels = torch.randint(0, vocab, (tokens,), generator=draw)
    labels[torch.rand(tokens, generator=draw) < ignored] = -100
    ours, plain = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    loss = chunked_cross_entropy(ours[0], ours[1], ours[2] if bias else None, labels, chunk)
    logits = nn.functional.linear(plain[0], plain[1], plain[2] if bias else None)
    expected = nn.functional.cross_entropy(logits, labels, reduction="sum")
    assert torch.allclose(loss, expected, rtol=1e-5, atol=1e-5)
    (3.0 * loss).backward()
    (3.0 * expected).backward()
    for mine, theirs in zip(ours, plain, strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_no_targets_give_zero_loss_and_zero_gradients() -> None:
    model = build_model(make_config("llama"))
    inputs, labels_BS = make_batch()
    loss = summed_loss(model, inputs, torch.full_like(labels_BS, -100))
    loss.backward()
    assert loss.item() == 0.0
    assert all((param.grad == 0).all() for param in model.parameters())


def test_no_gradient_is_made_where_none_is_asked() -> None:
    model = build_model(make_config("llama"))
    inputs, labels_BS = make_batch()
    expected = summed_loss(model, inputs, labels_BS)
    with torch.no_grad():
        loss = summed_loss(model, inputs, labels_BS)
    assert not loss.requires_grad
    assert loss.item() == expected.item()


def make_logits(dtype: torch.dtype) -> dict[str, Tensor]:
    """Of three blocks of the kernel and a bit; a label at each end, and one of which the model is sure."""
    logits_TV = torch.randn(4, 3 * 8192 + 5, generator=torch.Generator().manual_seed(0)) * 3
    labels_T = torch.tensor([0, 3 * 8192 + 4, 8192, 17])
    logits_TV[3, 17] = 20.0
    return {"logits": logits_TV.to(dtype), "labels": labels_T}


def check_logits(case: dict[str, Tensor], loss_T: Tensor, grad_TV: Tensor) -> None:
    exact = case["logits"].double().requires_grad_()
    expected_T = nn.functional.cross_entropy(exact, case["labels"], reduction="none")
    expected_T.sum().backward()
    assert exact.grad is not None
    assert torch.allclose(loss_T.cpu().double(), expected_T, rtol=1e-5, atol=1e-6)
    assert grad_TV.dtype == case["logits"].dtype
    slack = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[grad_TV.dtype]
    for mine, theirs in zip(grad_TV.cpu().double(), exact.grad, strict=True):
        assert (mine - theirs).norm() <= slack * theirs.norm() + 1e-6  # What fp32 knows of a probability near 1.


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_the_kernel_gives_losses_and_gradients_in_tritons_interpreter(tmp_path: Path) -> None:
    cases = [make_logits(dtype) for dtype in (torch.float32, torch.bfloat16)]
    for case, found in zip(cases, interpret("loss", cases, tmp_path), strict=True):
        check_logits(case, found["loss"], found["grad"])
        assert torch.equal(found["loss alone"], found["loss"])
        assert torch.equal(found["kept"], case["logits"])
        # The interpreter cuts off digits where a GPU rounds.
        assert torch.allclose(found["scaled"], 3 * case["logits"], rtol=2**-7)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_the_kernel_gives_losses_and_gradients(dtype: torch.dtype) -> None:
    from omni_models import triton_loss

    case = make_logits(dtype)
    grad_TV = case["logits"].cuda()
    check_logits(case, triton_loss.cross_entropy_(grad_TV, case["labels"].cuda(), grads=True), grad_TV)


def test_the_chunked_loss_is_that_of_torch(device: str) -> None:
    """Targets that are none, a bias, several chunks of which the last is shorter; on a GPU by the kernel."""
    random = torch.Generator().manual_seed(0)
    shapes = ((21, 16), (50, 16), (50,))
    mine = [torch.randn(shape, generator=random).to(device).requires_grad_() for shape in shapes]
    exact = [x.detach().double().requires_grad_() for x in mine]
    labels_T = torch.randint(50, (21,), generator=random).to(device)
    labels_T[3:9] = -100
    loss = chunked_cross_entropy(*mine, labels_T, 8)
    expected = nn.functional.cross_entropy(nn.functional.linear(*exact), labels_T, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (3 * loss).backward()
    (3 * expected).backward()
    for x, y in zip(mine, exact, strict=True):
        assert x.grad is not None and y.grad is not None
        assert (x.grad - y.grad).norm() <= 1e-5 * y.grad.norm()


def test_autocast_leaves_gradients_in_the_dtype_of_their_tensors() -> None:
    random = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 16, generator=random).requires_grad_() for n in (9, 50))
    labels_T = torch.randint(50, (9,), generator=random)
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_cross_entropy(x, w, None, labels_T, 4)
    loss.backward()
    expected = nn.functional.cross_entropy(x.detach() @ w.detach().T, labels_T, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
    assert x.grad is not None and x.grad.dtype == torch.float32


@pytest.mark.gpu
def test_the_chunked_loss_never_holds_all_logits() -> None:
    tokens, hidden, vocab, chunk = 8192, 256, 65536, 512
    x = torch.randn(tokens, hidden, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    w = torch.randn(vocab, hidden, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, vocab, (tokens,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    chunked_cross_entropy(x, w, None, labels, chunk).backward()
    extra = torch.cuda.max_memory_allocated() - before
    assert extra < 4 * chunk * vocab * 4 + 3 * vocab * hidden * 4  # All logits would be 1 GiB.


def test_targets_are_counted() -> None:
    assert count_targets(torch.tensor([[1, -100, 3], [-100, -100, 0]])).item() == 3


@given(tokens=st.integers(1, 10**6), vocab=st.integers(1, 10**6))
def test_chunks_fit_and_cover(tokens: int, vocab: int) -> None:
    chunk = chunk_tokens(tokens, vocab, 1 << 28)
    assert chunk == 1 or 4 * chunk * vocab <= 1 << 28
    assert 1 <= chunk <= tokens


def test_half_precision_keeps_the_gradient_of_a_sure_token() -> None:
    weight = torch.zeros(40, 8, dtype=torch.bfloat16)
    weight[3, 0] = 1.0
    hidden = torch.zeros(1, 8, dtype=torch.bfloat16)
    hidden[0, 0] = 10.0  # A probability of 1 - 0.0018, which bf16 would round to 1.
    ours, exact = hidden.clone().requires_grad_(), hidden.float().requires_grad_()
    chunked_cross_entropy(ours, weight, None, torch.tensor([3]), 1).backward()
    nn.functional.cross_entropy(nn.functional.linear(exact, weight.float()), torch.tensor([3])).backward()
    assert exact.grad[0, 0] < -1e-3
    assert ours.grad[0, 0].item() == pytest.approx(exact.grad[0, 0].item(), rel=0.01)
