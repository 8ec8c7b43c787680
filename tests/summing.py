"""What ranks do for `test_narrow` and `test_offload`: gradients of a model, by each alone and by all that share it."""

import gc
import os
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from copies import use_copies
from experts import grads_of, make_mixture, step
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from omni_mesh import MeshConfig, join_world, make_mesh, resolve_mesh
from omni_models import describe, map_experts, use_attention, use_experts
from omni_parallel import (
    ParallelPlan,
    apply_ep,
    gather_objects,
    narrow,
    offload_blocks,
    plan_parallel,
    recompute_blocks,
    shard_fsdp,
)
from omni_parallel.fsdp import shard_units
from omni_parallel.narrow import is_one_host
from omni_parallel.offload import Away

WIDTH = 33
"""Divides among no number of ranks but 3 and 11."""


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))


def backward(model: nn.Module, rows: Tensor) -> None:
    model(rows).square().sum().backward()


def sum_both_ways(
    config: MeshConfig, dtype: torch.dtype, passes: int, copies: bool = False
) -> dict[str, tuple[Tensor, Tensor]]:
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
        model = shard_units(model, mesh, plan, param_dtype=dtype)
        model = use_copies(model, dtype) if copies else model
        for rows in batches:
            backward(model, rows)
        shared = {name: param.grad for name, param in model.named_parameters()}
        assert all(isinstance(grad, DTensor) and grad.dtype == torch.float32 for grad in shared.values())
        whole = {name: grad.full_tensor().cpu() for name, grad in shared.items() if isinstance(grad, DTensor)}
        return {name: (made[name], whole[name]) for name in made}


def sum_between_hosts(dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """The same for ranks each of which calls its host otherwise."""
    own = narrow.node
    narrow.node = lambda: f"host of process {os.getpid()}"
    try:
        return sum_both_ways(MeshConfig(), dtype, 2)
    finally:
        narrow.node = own


def are_near(names: list[str]) -> list[bool]:
    """Whether ranks are told to be of one host, if hosts have such names, and if they are asked."""
    with join_world(device="cpu") as world:
        group = dist.distributed_c10d._get_default_group()
        return [is_one_host(group, host=host) for host in (names[world.rank], None)]


def travelling_dtypes(dtype: torch.dtype) -> set[torch.dtype]:
    """In which dtypes gradients travel, where `dtype` is that of compute."""
    seen, own = set[torch.dtype](), dist.all_to_all_single

    def watched(received: Tensor, sent: Tensor, **how: Any) -> Any:
        seen.add(sent.dtype)
        return own(received, sent, **how)

    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(MeshConfig(), world.size), device_type="cpu")
        model = shard_fsdp(make_net(), mesh, ParallelPlan(blocks=("1", "3")), param_dtype=dtype)
        dist.all_to_all_single = watched
        try:
            backward(model, torch.ones(7, 5, dtype=dtype))
        finally:
            dist.all_to_all_single = own
        return seen


class Block(nn.Module):
    """A layer that saves what it is given, what it gives, and its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x)) * x


def put_away_under_sharding(every: int) -> tuple[list[tuple[Tensor, Tensor]], set[tuple[int, ...]]]:
    """Gradients of a sharded model without and with its activations in memory of the host, and the sizes of these."""

    def differentiate(*, offload: bool) -> tuple[list[Tensor], set[tuple[int, ...]]]:
        torch.manual_seed(0)
        model = nn.Sequential(*(Block() for _ in range(4))).to(world.device)
        blocks = ("0", "1", "2", "3")
        plan = ParallelPlan(blocks, recompute=blocks[:every], offload=blocks if offload else (), keep=("aten::addmm",))
        model = offload_blocks(recompute_blocks(model, plan), plan, smallest=1)
        model = shard_units(model, mesh, plan, param_dtype=torch.float32)
        sizes: set[tuple[int, ...]] = set()
        for _ in range(2):
            model.zero_grad()
            loss = model(torch.ones(5, WIDTH, device=world.device).cumsum(0) / 5).square().sum()
            sizes |= {tuple(each.size) for each in gc.get_objects() if type(each) is Away}
            loss.backward()
        grads = [param.grad.full_tensor().cpu() for param in model.parameters() if isinstance(param.grad, DTensor)]
        return grads, sizes

    with join_world() as world:
        mesh = make_mesh(resolve_mesh(MeshConfig(), world.size), device_type=world.device.type)
        plain, _ = differentiate(offload=False)
        again, sizes = differentiate(offload=True)
        return list(zip(plain, again, strict=True)), sizes


def put_away_of_experts(config: MeshConfig) -> tuple[list[tuple[Tensor, Tensor]], set[int], list[tuple[int, ...]]]:
    """Gradients of a mixture with spread experts without and with its activations in memory of the host; the sizes of
    weights of experts; and what is there by size."""

    def differentiate(*, offload: bool) -> tuple[dict[str, Tensor | None], set[int], list[tuple[int, ...]]]:
        model = use_experts(use_attention(make_mixture("qwen3_moe"), "sdpa"))
        plan = plan_parallel(describe(model), mesh.spec)
        plan = replace(plan, offload=plan.blocks if offload else ())
        sizes = {param.numel() // mesh.spec.ep for param in model.parameters() if param.ndim == 3}
        model = apply_ep(model, mesh, plan, over=map_experts)
        model = shard_fsdp(offload_blocks(model, plan, smallest=1), mesh, plan, param_dtype=torch.bfloat16)
        away = list[tuple[int, ...]]()
        handle = model.register_forward_hook(
            lambda *_: away.extend(tuple(each.size) for each in gc.get_objects() if type(each) is Away)
        )
        step(model, mesh)
        handle.remove()
        return grads_of(model), sizes, away

    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(config, world.size), device_type="cpu")
        plain, sizes, _ = differentiate(offload=False)
        again, _, away = differentiate(offload=True)
        pairs = [
            (grad, other) for name, grad in plain.items() if grad is not None and (other := again[name]) is not None
        ]
        return pairs, sizes, away
