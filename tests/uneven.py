"""A state whose dims no number of ranks divides, saved and loaded: run on ranks by `test_meshes.py`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from toy import plan_toy
from trouble import local

from omni_ckpt import begin_save_dcp, flatten, load_dcp, make_staging, save_dcp
from omni_mesh import MeshConfig, join_world, make_mesh, resolve_mesh
from omni_parallel import AdamWConfig, TrainState, constant, init_state, restore_state, shard_fsdp, state_tree, update


class Uneven(nn.Module):
    """Of four ranks each has a part of another size, and of three some have nothing of the gain."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(33, 97), nn.Linear(97, 65), nn.Linear(65, 33, dtype=torch.bfloat16)])
        self.out = nn.Linear(33, 7)
        self.gain = nn.Parameter(torch.ones(2))

    def forward(self, x_BI: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x_BI = layer(x_BI)
        return self.out(x_BI).sum() * self.gain.sum()


@contextmanager
def uneven_state(config: MeshConfig, seed: int) -> Iterator[TrainState]:
    """While open, a state on the ranks of this world."""
    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(config, world.size), device_type="cpu")
        torch.manual_seed(seed)
        yield init_state(shard_fsdp(Uneven(), mesh, plan_toy(), param_dtype=torch.float32), AdamWConfig())


def train_uneven(config: MeshConfig, path: Path) -> str:
    """Save the state after two steps as checkpoint `path`; its digest."""
    with uneven_state(config, seed=0) as fresh:
        state = fresh
        for _ in range(2):
            state.model(torch.randn(4, 33)).backward()
            state = update(state, constant(1e-2))
        save_dcp({"state": state_tree(state)}, path)
        return digest(state)


def save_again(config: MeshConfig, found: Path, path: Path) -> None:
    """Load checkpoint `found` and save it as `path`, as apps do: by way of host memory."""
    with uneven_state(config, seed=1) as fresh:
        tree = {"state": state_tree(load(fresh, found))}
        begin_save_dcp(tree, path, staging=make_staging(tree))()


def load_each(config: MeshConfig, paths: Mapping[str, Path]) -> dict[str, str]:
    """The digest of each checkpoint as it is loaded, and of the state before."""
    with uneven_state(config, seed=1) as fresh:
        state, found = fresh, {"none": digest(fresh)}
        for name, path in paths.items():
            state = load(state, path)
            found[name] = digest(state)
            for tensor in flatten(state_tree(state))[0].values():
                local(tensor).detach().zero_()
        return found


def load(state: TrainState, path: Path) -> TrainState:
    return restore_state(state, load_dcp({"state": state_tree(state)}, path)["state"])


def digest(state: TrainState) -> str:
    """SHA-256 of the whole of each tensor, by name, and of the plain values. Collective."""
    tensors, plain = flatten(state_tree(state))
    sha = sha256(repr(sorted(plain.items())).encode())
    for name, tensor in sorted(tensors.items()):
        whole = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
        sha.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
        sha.update(whole.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
