"""A toy model of residual blocks: what the functions of this package need of a model, and nothing more."""

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from omni_mesh import MeshSpec
from omni_parallel import ParallelPlan, RecomputeConfig, plan_parallel


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.drop = nn.Dropout(0.2)
        self.calls = 0

    def forward(self, x_BH: Tensor) -> Tensor:
        self.calls += 1
        return x_BH + self.drop(torch.tanh(self.linear(self.norm(x_BH))))


class Toy(nn.Module):
    blocks = ("layers.0", "layers.1", "layers.2")
    num_heads = 2
    num_kv_heads = 2
    head = "out"
    decoder = ""
    rotaries = ()
    unsplittable = ()
    experts = ()
    expert_shapes = ()
    unspreadable = ()
    mlps = ()

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.layers = nn.ModuleList(Block(width) for _ in self.blocks)
        self.out = nn.Linear(width, 1)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("scratch", torch.tensor(0.0), persistent=False)

    def forward(self, x_BI: Tensor) -> Tensor:
        h_BH = self.embed(x_BI)
        for layer in self.layers:
            h_BH = layer(h_BH)
        return self.out(h_BH) * self.scale


def make_toy(width: int = 7) -> Toy:
    torch.manual_seed(0)
    return Toy(width).train()


def plan_toy(every: int = 0) -> ParallelPlan:
    return plan_parallel(make_toy(), MeshSpec(), recompute=RecomputeConfig(every))


def make_batch(rows: int = 12) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, x_BI: Tensor) -> dict[str, Tensor]:
    """The gradients of the summed squares of a copy-free forward pass, dropout seeded."""
    torch.manual_seed(5)
    model(x_BI).square().sum().backward()
    found = {name: copy.copy(param.grad) for name, param in model.named_parameters()}
    assert all((found[name] is not None) == param.requires_grad for name, param in model.named_parameters())
    return found  # pyright: ignore[reportReturnType]


class Count(TorchDispatchMode):
    """Counts what reaches the kernels; what is kept is answered above this mode."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.runs[func.name()] += 1
        return func(*args, **(kwargs or {}))
