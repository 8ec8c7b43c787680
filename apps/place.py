"""The transformations that turn a model into what a rank computes with, in the order in which they compose."""

from decision import Decision
from request import Config
from transformers import PreTrainedModel

from omni_mesh import Mesh
from omni_models import map_attention, map_experts, use_attention, use_experts, use_kernels
from omni_parallel import (
    apply_ep,
    apply_fp8,
    apply_ulysses,
    compile_blocks,
    offload_blocks,
    recompute_blocks,
    shard_fsdp,
    tile_mlps,
)


def place(config: Config, run: Decision, mesh: Mesh) -> PreTrainedModel:
    """The model of `run` on `mesh`, without weights yet. Donates `run.model`.

    Each line takes the model and gives it back; each can be left out.
    """
    model = use_kernels(run.model, run.kernels, device_type=run.device)
    model = use_attention(model, run.compute.attention)
    model = use_experts(model, run.compute.experts)
    model = apply_ulysses(model, mesh, run.plan, over=map_attention)
    model = apply_ep(model, mesh, run.plan, over=map_experts, even=config.set_rows_aside)
    model = apply_fp8(model, run.plan) if run.compute.linear == "fp8" else model
    model = tile_mlps(model, run.plan)
    model = compile_blocks(model, run.plan)
    model = recompute_blocks(model, run.plan)
    model = offload_blocks(model, run.plan)
    return shard_fsdp(model, mesh, run.plan, param_dtype=run.dtype)
