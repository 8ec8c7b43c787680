"""Decoders of what is no text: image tokens, continuous latents, audio codes of several codebooks.

Each gives a loss for hidden states and what they should have predicted, summed over targets as the loss of text is,
and makes outputs of hidden states; what it made comes back into the row by `embed`. A module of your own with these
functions is a decoder too.

Dimensions: F outputs, H hidden size, K codes, Q codebooks, D numbers of a latent.
"""

import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni_models.draws import normal_of, uniform_of


@runtime_checkable
class Decoder(Protocol):
    """What a module has to have to be a decoder; `embed(targets) -> (F, H)` too, if its outputs come back."""

    def loss(self, hidden_FH: Tensor, targets: Tensor, keys_F: Tensor) -> Tensor:
        """The loss summed over F targets, a scalar in fp32; of none it is zero, with a gradient of zero."""
        ...

    def sample(self, hidden_FH: Tensor, keys_F: Tensor, temperature: float = 0.0) -> Tensor:
        """Outputs, as targets are. `keys_F` is all that chance depends on."""
        ...


class VQHead(nn.Module):
    """One of K codes for each hidden state, by cross entropy."""

    def __init__(self, hidden: int, codes: int, inner: int = 0) -> None:
        """`inner` is the width of a layer between; 0 for none."""
        super().__init__()
        self.out = _layers(hidden, codes, inner)
        self.codes = nn.Embedding(codes, hidden)

    def loss(self, hidden_FH: Tensor, targets: Tensor, keys_F: Tensor) -> Tensor:
        """Cross entropy, nats, of targets (F,)."""
        return F.cross_entropy(self.out(hidden_FH).float(), targets, reduction="sum")

    def sample(self, hidden_FH: Tensor, keys_F: Tensor, temperature: float = 0.0) -> Tensor:
        """(F,): the likeliest codes, or such as are drawn at a temperature."""
        return choose(self.out(hidden_FH), keys_F, temperature)

    def embed(self, targets: Tensor) -> Tensor:
        """(F, H), of codes (F,)."""
        return self.codes(targets)


class CodesHead(nn.Module):
    """One of K codes of each of Q codebooks for each hidden state, by cross entropy."""

    def __init__(self, hidden: int, codebooks: int, codes: int, inner: int = 0) -> None:
        """`inner` is the width of a layer between; 0 for none."""
        super().__init__()
        self.shape = (codebooks, codes)
        self.out = _layers(hidden, codebooks * codes, inner)
        self.codes = nn.Embedding(codebooks * codes, hidden)

    def loss(self, hidden_FH: Tensor, targets: Tensor, keys_F: Tensor) -> Tensor:
        """Cross entropy, nats, summed over targets (F, Q) and their codebooks."""
        return F.cross_entropy(self._logits(hidden_FH).flatten(0, 1).float(), targets.flatten(), reduction="sum")

    def sample(self, hidden_FH: Tensor, keys_F: Tensor, temperature: float = 0.0) -> Tensor:
        """(F, Q): the likeliest codes, or such as are drawn at a temperature."""
        return choose(self._logits(hidden_FH), keys_F, temperature)

    def embed(self, targets: Tensor) -> Tensor:
        """(F, H): the sum over codebooks, of codes (F, Q)."""
        codebooks, codes = self.shape
        return self.codes(targets + torch.arange(codebooks, device=targets.device) * codes).sum(dim=1)

    def _logits(self, hidden_FH: Tensor) -> Tensor:
        return self.out(hidden_FH).unflatten(1, self.shape)


class FlowHead(nn.Module):
    """Latents of D numbers by rectified flow (Liu et al., 2022, arXiv:2209.03003): a velocity is learnt that leads
    from noise to the latent in a straight line, for each hidden state alone (as the loss of Li et al., 2024,
    arXiv:2406.11838)."""

    def __init__(self, hidden: int, width: int, inner: int = 128, steps: int = 16) -> None:
        """`steps` are those from noise to a latent, in `sample`."""
        super().__init__()
        self.width, self.steps = width, steps
        self.out = _layers(hidden + width + 2 * len(_WAVES), width, inner)
        self.latents = nn.Linear(width, hidden)

    def loss(self, hidden_FH: Tensor, targets: Tensor, keys_F: Tensor) -> Tensor:
        """Mean squared error of the velocity, summed over latents (F, D); noise and time are those of the keys."""
        noise_FD, time_F1 = normal_of(keys_F, self.width), uniform_of(~keys_F, 1)
        latents_FD = targets.float()
        between_FD = (1 - time_F1) * noise_FD + time_F1 * latents_FD
        error_FD = self.velocity(hidden_FH, between_FD, time_F1).float() - (latents_FD - noise_FD)
        return error_FD.square().sum() / self.width

    def sample(self, hidden_FH: Tensor, keys_F: Tensor, temperature: float = 0.0) -> Tensor:
        """(F, D) fp32, from the noise of the keys; at a temperature of 0 from the middle of it."""
        latents_FD = temperature * normal_of(keys_F, self.width)
        for step in range(self.steps):
            time_F1 = torch.full_like(latents_FD[:, :1], step / self.steps)
            latents_FD = latents_FD + self.velocity(hidden_FH, latents_FD, time_F1).float() / self.steps
        return latents_FD

    def embed(self, targets: Tensor) -> Tensor:
        """(F, H), of latents (F, D)."""
        return self.latents(targets.to(self.latents.weight.dtype))

    def velocity(self, hidden_FH: Tensor, between_FD: Tensor, time_F1: Tensor) -> Tensor:
        """(F, D), where latents are between noise (time 0) and themselves (time 1)."""
        angle_FW = time_F1 * torch.tensor(_WAVES, device=time_F1.device)
        told = (hidden_FH, between_FD, angle_FW.sin(), angle_FW.cos())
        return self.out(torch.cat([x.to(hidden_FH.dtype) for x in told], dim=1))


_WAVES = tuple(math.pi * 2.0**i for i in range(5))
"""By which a time between 0 and 1 is told, in radians."""


def choose(logits_FxK: Tensor, keys_F: Tensor, temperature: float) -> Tensor:
    """The likeliest of K, or one that is drawn at a temperature by the keys, (F, ...). Pure.

    The largest of logits with noise of Gumbel's distribution is drawn by their softmax.
    """
    logits_FxK = logits_FxK.float()
    if temperature > 0 and len(logits_FxK):
        drawn_FX = uniform_of(keys_F, logits_FxK[0].numel())
        logits_FxK = logits_FxK / temperature - (-drawn_FX.log()).log().view_as(logits_FxK)
    return logits_FxK.argmax(dim=-1)


def _layers(width: int, out: int, inner: int) -> nn.Module:
    if not inner:
        return nn.Linear(width, out)
    return nn.Sequential(nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, out))
