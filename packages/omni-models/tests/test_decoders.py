"""Laws of decoders and of what they draw: a loss is its formula, and chance depends on keys alone."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni_models import CodesHead, Decoder, FlowHead, VQHead, keys_of, normal_of, uniform_of
from omni_models.decoders import choose

HEADS = {
    "vq": (lambda: VQHead(8, 5), lambda count: torch.arange(count) % 5),
    "vq of two layers": (lambda: VQHead(8, 5, inner=6), lambda count: torch.arange(count) % 5),
    "codes": (lambda: CodesHead(8, 3, 5), lambda count: (torch.arange(3 * count) % 5).view(count, 3)),
    "flow": (lambda: FlowHead(8, 4, inner=16), lambda count: torch.linspace(-1, 1, 4 * count).view(count, 4)),
}


def keys(count: int, step: int = 0, device: str | torch.device = "cpu") -> Tensor:
    return torch.from_numpy(keys_of(7, step, np.zeros(count, np.int64), np.arange(count))).to(device)


@pytest.fixture(params=HEADS)
def case(request: pytest.FixtureRequest, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A head, six hidden states, six targets, on each device."""
    torch.manual_seed(0)
    make, targets = HEADS[request.param]
    return make().to(device), torch.randn(6, 8).to(device), targets(6).to(device)


def test_what_is_here_are_decoders_whose_outputs_are_as_their_targets(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    head, hidden_FH, targets = case
    assert isinstance(head, Decoder)
    for temperature in (0.0, 1.0):
        made = head.sample(hidden_FH, keys(6, device=hidden_FH.device), temperature)
        assert made.shape == targets.shape and made.dtype == targets.dtype
        assert torch.equal(made, head.sample(hidden_FH, keys(6, device=hidden_FH.device), temperature))
    assert head.embed(targets).shape == (6, 8)  # pyright: ignore[reportCallIssue]


def test_a_loss_is_a_sum_over_targets_however_they_are_cut(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    head, hidden_FH, targets = case
    assert isinstance(head, Decoder)
    whole = head.loss(hidden_FH, targets, keys(6, device=hidden_FH.device))
    assert whole.dtype == torch.float32 and whole.shape == ()
    order = torch.tensor([4, 1, 5], device=hidden_FH.device)
    rest = torch.tensor([0, 2, 3], device=hidden_FH.device)
    parts = [
        head.loss(hidden_FH[some], targets[some], keys(6, device=hidden_FH.device)[some]) for some in (order, rest)
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_of_no_target_loss_and_every_gradient_are_zero(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    head, hidden_FH, targets = case
    assert isinstance(head, Decoder) and isinstance(head, nn.Module)
    loss = head.loss(hidden_FH[:0], targets[:0], keys(0, device=hidden_FH.device)) + head.embed(targets[:0]).sum()  # pyright: ignore
    assert loss.item() == 0.0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
    assert head.sample(hidden_FH[:0], keys(0, device=hidden_FH.device), 1.0).shape == targets[:0].shape


def test_the_loss_of_codes_is_the_sum_of_their_cross_entropies() -> None:
    torch.manual_seed(1)
    head, hidden_FH, targets_FQ = CodesHead(8, 3, 5), torch.randn(6, 8), torch.randint(5, (6, 3))
    logits = F.linear(hidden_FH, head.out.weight, head.out.bias)  # pyright: ignore[reportArgumentType]
    wanted = sum(F.cross_entropy(logits[:, 5 * q : 5 * q + 5], targets_FQ[:, q], reduction="sum") for q in range(3))
    torch.testing.assert_close(head.loss(hidden_FH, targets_FQ, keys(6)), wanted)


def test_a_flow_that_is_learnt_leads_from_noise_to_the_latent() -> None:
    torch.manual_seed(2)
    head, hidden_FH = FlowHead(8, 2, inner=64, steps=32), torch.randn(4, 8)
    latents_FD = torch.tensor([[1.0, -1.0], [-1.0, 0.5], [0.3, 0.8], [-0.6, -0.6]])
    adam = torch.optim.Adam(head.parameters(), 1e-2)
    first = None
    for step in range(400):
        many = torch.arange(4).repeat(16)
        loss = head.loss(hidden_FH[many], latents_FD[many], keys(64, step)) / 64
        first = first or loss.item()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss.item() < 0.1 * first  # pyright: ignore[reportPossiblyUnboundVariable]
    for temperature in (0.0, 1.0):
        assert (head.sample(hidden_FH, keys(4), temperature) - latents_FD).abs().max() < 0.25


def test_codes_are_drawn_by_their_probabilities() -> None:
    logits_K = torch.tensor([0.0, 1.0, 2.0])
    drawn = choose(logits_K.expand(20_000, 3), keys(20_000), 2.0)
    shares = drawn.bincount(minlength=3) / 20_000
    torch.testing.assert_close(shares, (logits_K / 2).softmax(0), atol=0.015, rtol=0)
    assert choose(logits_K.expand(3, 3), keys(3), 0.0).tolist() == [2, 2, 2]


def test_keys_differ_where_anything_differs_and_nowhere_else() -> None:
    rows, places = (each.ravel() for each in np.mgrid[0:40, 0:50])
    found = [keys_of(seed, step, rows, places) for seed in (0, 1, -1) for step in (0, 1)]
    assert len(np.unique(np.concatenate(found))) == 6 * 2000
    some = np.array([17, 3])
    assert np.array_equal(keys_of(1, 1, rows[some], places[some]), found[3][some])


def test_what_is_drawn_is_as_spread_as_it_should_be_and_never_infinite() -> None:
    even, normal = uniform_of(keys(4000), 8), normal_of(keys(4000), 8)
    assert even.min() > 0 and even.max() < 1
    assert abs(even.mean() - 0.5) < 0.005 and abs(even.std() - 12**-0.5) < 0.005
    assert abs(normal.mean()) < 0.015 and abs(normal.std() - 1) < 0.015 and normal.isfinite().all()
    correlated = torch.corrcoef(normal.T) - torch.eye(8)
    assert correlated.abs().max() < 4 / math.sqrt(4000)
    assert abs(torch.corrcoef(torch.stack([even[:-1, 0], even[1:, 0]]))[0, 1]) < 4 / math.sqrt(4000)
    assert torch.equal(even[5:6], uniform_of(keys(4000)[5:6], 8))


def test_each_device_draws_the_same(device: str) -> None:
    here, there = (uniform_of(keys(500, device=where), 8).cpu() for where in ("cpu", device))
    assert torch.equal(here, there)
    torch.testing.assert_close(*(normal_of(keys(500, device=where), 8).cpu() for where in ("cpu", device)))
