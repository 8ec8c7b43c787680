"""The transformations that turn a model into what a rank computes with, in the order in which they compose."""

from collections.abc import Iterable

import torch.distributed as dist
from adapt import adapt
from decision import Decision
from request import Config
from transformers import PreTrainedModel

from omni_mesh import Mesh, MeshConfig, make_mesh, resolve_mesh
from omni_models import freeze_parts, map_attention, map_encoders, map_experts, use_attention, use_experts, use_kernels
from omni_parallel import (
    apply_encoders,
    apply_ep,
    apply_fp8,
    apply_ulysses,
    compile_blocks,
    offload_blocks,
    recompute_blocks,
    shard_fsdp,
    shard_parts,
    split_plan,
    tile_mlps,
)


def place(config: Config, run: Decision, mesh: Mesh) -> PreTrainedModel:
    """The model of `run` on `mesh`, without weights yet. Donates `run.model`.

    Each line takes the model and gives it back; each can be left out.
    """
    model = freeze_parts(run.model, run.frozen) if run.frozen else run.model
    model = use_kernels(model, run.kernels, device_type=run.device)
    model = use_attention(model, run.compute.attention)
    model = use_experts(model, run.compute.experts)
    model = apply_fp8(model, run.plan) if run.compute.linear == "fp8" else model
    model = adapt(config, model, run.dtype)
    model = apply_ulysses(model, mesh, run.plan, over=map_attention)
    model = apply_encoders(model, over=map_encoders) if run.plan.encoders else model
    model = apply_ep(model, mesh, run.plan, over=map_experts, even=config.set_rows_aside)
    model = tile_mlps(model, run.plan)
    model = compile_blocks(model, run.plan)
    model = recompute_blocks(model, run.plan)
    model = offload_blocks(model, run.plan)
    plan, apart = split_plan(run.plan, run.replicated)
    model = shard_parts(model, make_whole(apart, run.device), apart, param_dtype=run.dtype)
    return shard_fsdp(model, mesh, plan, param_dtype=run.dtype)


def make_whole(parts: Iterable[str], device: str) -> dict[str, Mesh]:
    """By part, the mesh on which every rank has all of it. Collective."""
    spec = resolve_mesh(MeshConfig(replicate=-1, shard=1), dist.get_world_size())
    return {name: make_mesh(spec, device_type=device) for name in parts}
