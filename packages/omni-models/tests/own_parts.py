"""Parts of a user's own: two encoders and a decoder, plain modules that know nothing of where they are used."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Ears(nn.Module):
    """An encoder of a user's own: sounds of 64 samples, two features each, by a convolution and attention."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.listen = nn.Conv1d(1, width, 8, stride=8)
        self.place = nn.Parameter(torch.zeros(8, width))
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """What no layer of torch sets."""
        nn.init.normal_(self.place, std=0.1)

    def forward(self, waves: Tensor) -> Tensor:
        x = self.listen(waves[:, None]).transpose(1, 2) + self.place
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        return x.unflatten(1, (2, 4)).mean(dim=2)


class Frames(nn.Module):
    """An encoder of films of a user's own: a feature for each of two frames of 4 x 4."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.look = nn.Linear(16, width)

    def forward(self, films: Tensor) -> Tensor:
        return self.look(films.flatten(2)).tanh()


class Guess(nn.Module):
    """A decoder of a user's own: one number for each hidden state, by absolute error; it never comes back."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.out = nn.Linear(hidden, 1)

    def loss(self, hidden_FH: Tensor, targets: Tensor, keys_F: Tensor) -> Tensor:
        return (self.out(hidden_FH)[:, 0].float() - targets).abs().sum()

    def sample(self, hidden_FH: Tensor, keys_F: Tensor, temperature: float = 0.0) -> Tensor:
        return self.out(hidden_FH)[:, 0].float()
