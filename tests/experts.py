"""Experts against plain transformers: tiny mixtures of many types, and the comparison that a rank makes.

uv run tests/experts.py --write        measure the table of docs/experts.md anew
"""

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sequence
import torch
from ranks import rank_pool
from sequence import TOLERANCE, TYPES, packed, plain_loss, worst_error
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from omni_data import shard_sequence
from omni_mesh import Mesh, MeshConfig, join_world, make_mesh, resolve_mesh
from omni_models import (
    attention_problems,
    count_targets,
    describe,
    map_attention,
    map_experts,
    summed_loss,
    use_attention,
    use_experts,
)
from omni_parallel import RecomputeConfig, apply_ep, apply_ulysses, global_sum, plan_parallel, recompute_blocks, shard_fsdp

DOCS = Path(__file__).parent.parent / "docs" / "experts.md"
MIXTURES = (
    *("qwen3_moe", "mixtral", "deepseek_v2", "deepseek_v3", "glm4_moe", "gpt_oss", "qwen3_vl_moe", "olmoe"),
    *("minimax_m2", "granitemoe", "ernie4_5_moe"),
)
MESHES = {
    "shard 4": MeshConfig(shard=4),
    "shard 2 x sp 2": MeshConfig(shard=2, sp=2),
    "shard 4, ep 2": MeshConfig(shard=4, ep=2),
    "shard 2 x sp 2, ep 2": MeshConfig(shard=2, sp=2, ep=2),
    "replicate 2 x shard 2, ep 2": MeshConfig(replicate=2, shard=2, ep=2),
    "shard 4, ep 4": MeshConfig(shard=4, ep=4),
    "shard 2 x sp 2, ep 4": MeshConfig(shard=2, sp=2, ep=4),
}
"""Ways to lay four ranks."""
ROWS = ((9, 1, 20, 7), (23, 3, 11), (37,), (2, 2, 30, 3))
"""Documents of four rows of 37 tokens."""


def make_mixture(name: str) -> PreTrainedModel:
    """A tiny plain model whose experts compute one by one, with weights and router biases that are not trivial."""
    model = sequence.make_model(name)
    model.set_experts_implementation("eager")
    random = torch.Generator().manual_seed(2)
    for key, tensor in (*model.named_buffers(), *model.named_parameters()):
        if key.endswith("e_score_correction_bias"):
            tensor.data.add_(torch.randn(tensor.shape, generator=random), alpha=0.1)
    return model


def place(model: PreTrainedModel, mesh: Mesh, recompute: RecomputeConfig = RecomputeConfig()) -> PreTrainedModel:
    """`model` laid over `mesh`, as the app does. Donates `model`."""
    plan = plan_parallel(describe(model), mesh.spec, recompute=recompute)
    attend = "eager" if attention_problems(model, "sdpa", "cpu", torch.float32) else "sdpa"
    model = use_experts(use_attention(model, attend))
    model = apply_ulysses(model, mesh, plan, over=map_attention)
    model = apply_ep(model, mesh, plan, over=map_experts)
    model = recompute_blocks(model, plan)
    return shard_fsdp(model, mesh, plan, param_dtype=torch.float32)


def cut(mesh: Mesh) -> tuple[list[tuple[int, ...]], int, int]:
    """The rows that this rank reads, and which of how many slices of them are its own."""
    dp, own = mesh.spec.dp, mesh.tokens.get_local_rank("dp")
    return list(ROWS[own * len(ROWS) // dp : (own + 1) * len(ROWS) // dp]), mesh.tokens.get_local_rank("sp"), mesh.spec.sp


def step(model: PreTrainedModel, mesh: Mesh) -> float:
    """The mean loss of all rows, whose gradients are left in `model`."""
    rows, index, count = cut(mesh)
    inputs, labels_BS, _ = packed(rows, skip=ROWS[: ROWS.index(rows[0])])
    labels_Bs = torch.from_numpy(shard_sequence(labels_BS.numpy(), index, count))
    loss = summed_loss(model, inputs, labels_Bs) / global_sum(count_targets(labels_Bs))
    loss.backward()
    return global_sum(loss.detach()).item()


def whole(tensor: Tensor | None) -> Tensor | None:
    """`tensor` of all ranks together. Collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def compare(name: str, meshes: Mapping[str, MeshConfig], every: int = 0) -> dict[str, tuple[float, float, str]]:
    """By mesh: relative errors of the loss and of the worst gradient, and the name of that parameter."""
    errors = {}
    with join_world(device="cpu") as world:
        start = make_mixture(name)
        plain = copy.deepcopy(start)
        expected = plain_loss(plain, packed(list(ROWS))[2]) if world.rank == 0 else 1.0
        theirs = {key: param.grad for key, param in plain.named_parameters()}
        for label, config in meshes.items():
            mesh = make_mesh(resolve_mesh(config, world.size), device_type="cpu")
            ours = place(copy.deepcopy(start), mesh, RecomputeConfig(every=every))
            loss = step(ours, mesh)
            mine = {key: whole(param.grad) for key, param in ours.named_parameters()}
            if world.rank == 0:
                errors[label] = (abs(loss - expected) / expected, *worst_error(mine, theirs))
    return errors
