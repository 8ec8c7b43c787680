"""What each rank runs in `test_alone.py`: a pool sends functions by the name of their module."""

import contextlib
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from omni_mesh import MeshConfig

Said = list[str]
Params = dict[str, Tensor]


def train_by_hand(script: str) -> list[tuple[float, dict[str, Tensor]]]:
    """Of each step of the example of omni-parallel: the loss of all ranks, and every gradient, whole."""
    found: list[tuple[float, dict[str, Tensor]]] = []

    def note(model: nn.Module, loss: Tensor) -> None:
        total = loss.detach().clone()
        dist.all_reduce(total)
        found.append((total.item(), {name: whole(p.grad).clone() for name, p in model.named_parameters()}))

    line = "norm = grad_norm(model)"
    assert line in script
    exec(script.replace(line, f"note(model, loss); {line}"), {"note": note, "print": lambda *_: None})
    return found


def reduce_over(script: str) -> str:
    """What the example of omni-mesh says on two replicas of two shards."""
    said: Said = []
    names: dict[str, Any] = {"__name__": "example", "print": lambda text, end: said.append(text)}
    exec(script, names)
    names["main"](names["Config"](MeshConfig(replicate=2, shard=2)))
    return said[0].strip()


def save_and_resume(script: str, folder: Path, stop_after: int | None = None) -> tuple[Said, Params]:
    """What the example of omni-ckpt says in `folder`, and its parameters, whole; stopped as it tells that step."""
    said: Said = []

    def tell(text: str) -> None:
        said.append(text)
        if len(said) == stop_after:
            raise KeyboardInterrupt

    folder.mkdir(exist_ok=True)
    names: dict[str, Any] = {"print": tell}
    try:
        with contextlib.chdir(folder), contextlib.suppress(KeyboardInterrupt):
            exec(script, names)
        return said, {name: whole(p.detach()) for name, p in names["model"].named_parameters()}
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def whole(x: Any) -> Tensor:
    """The tensor of all ranks. Collective."""
    return x.full_tensor() if isinstance(x, DTensor) else x
