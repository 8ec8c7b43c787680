"""What ranks do for `test_links`: gradients of one model, by each rank alone and by all that share it."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from omni_mesh import MeshConfig, join_world, make_mesh, resolve_mesh
from omni_parallel import ParallelPlan, gather_objects, shard_fsdp
from omni_parallel.links import COLLECTIVES, COPIES

LINKS = {"collectives": COLLECTIVES, "copies": COPIES}
WIDTH = 33
"""Divides among no number of ranks but 3 and 11."""


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))


def backward(model: nn.Module, rows: Tensor) -> None:
    model(rows).square().sum().backward()


def sum_both_ways(config: MeshConfig, dtype: torch.dtype, links: str, passes: int) -> dict[str, tuple[Tensor, Tensor]]:
    """By name of a parameter: the sum in fp32, in the order of ranks, of the gradients that each rank makes in `dtype`
    of rows of its own, and what sharding gives; each over some backward passes."""
    with join_world() as world:
        device = world.device
        model, plan = make_net().to(device), ParallelPlan(blocks=("1", "3"))
        random = torch.Generator().manual_seed(world.rank)
        batches = [torch.randn(7, 5, generator=random).to(device, dtype) for _ in range(passes)]
        made = dict.fromkeys((name for name, _ in model.named_parameters()), torch.zeros(()))
        for rows in batches:
            alone = make_net().to(device, dtype)
            backward(alone, rows)
            grads = {name: param.grad for name, param in alone.named_parameters()}
            every = gather_objects({name: grad.float().cpu() for name, grad in grads.items() if grad is not None})
            made = {name: made[name] + torch.stack([own[name] for own in every]).sum(0) for name in made}
        mesh = make_mesh(resolve_mesh(config, world.size), device_type=device.type)
        model = shard_fsdp(model, mesh, plan, param_dtype=dtype, links=LINKS[links])
        for rows in batches:
            backward(model, rows)
        shared = {name: param.grad for name, param in model.named_parameters()}
        assert all(isinstance(grad, DTensor) and grad.dtype == torch.float32 for grad in shared.values())
        whole = {name: grad.full_tensor().cpu() for name, grad in shared.items() if isinstance(grad, DTensor)}
        return {name: (made[name], whole[name]) for name in made}
