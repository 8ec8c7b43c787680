"""Experts against plain transformers: tiny mixtures of many types, and the comparison that a rank makes.

PYTHONPATH=packages/omni-models/tests uv run tests/experts.py --write        measure the table of docs/experts.md anew
"""

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sequence
import torch
from ranks import rank_pool
from sequence import TYPES, make_config, packed, plain_loss, worst_error, write_table
from shapes import MIXTURES
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
from omni_parallel import (
    RecomputeConfig,
    apply_ep,
    apply_ulysses,
    clip_grads_,
    compile_blocks,
    global_sum,
    plan_parallel,
    recompute_blocks,
    shard_fsdp,
    tile_mlps,
)

DOCS = Path(__file__).parent.parent / "docs" / "experts.md"
NAMES = (*MIXTURES, "qwen3_vl_moe")
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


def make_mixture(name: str, **changes: Any) -> PreTrainedModel:
    """A tiny plain model whose experts compute one by one, with weights and router biases that are not trivial."""
    if changes:
        model = sequence.fill(sequence.make_kind(make_config(TYPES[name][1] | changes)))
    else:
        model = sequence.make_model(name)
    model.set_experts_implementation("eager")
    random = torch.Generator().manual_seed(2)
    for key, tensor in (*model.named_buffers(), *model.named_parameters()):
        if key.endswith("e_score_correction_bias"):
            tensor.data.add_(torch.randn(tensor.shape, generator=random), alpha=0.1)
    return model


def place(
    model: PreTrainedModel,
    mesh: Mesh,
    recompute: RecomputeConfig | None = None,
    *,
    param_dtype: torch.dtype = torch.float32,
    even: bool = True,
    tile: int = 0,
    compile: bool = False,
) -> PreTrainedModel:
    """`model` laid over `mesh`, as the app does. Donates `model`."""
    recompute = recompute or RecomputeConfig()
    plan = plan_parallel(describe(model), mesh.spec, recompute=recompute, tile=tile, compile=compile)
    attend = "eager" if attention_problems(model, "sdpa", "cpu", torch.float32) else "sdpa"
    model = use_experts(use_attention(model, attend))
    model = apply_ulysses(model, mesh, plan, over=map_attention)
    model = apply_ep(model, mesh, plan, over=map_experts, even=even)
    model = tile_mlps(model, plan)
    model = compile_blocks(model, plan)
    model = recompute_blocks(model, plan)
    return shard_fsdp(model, mesh, plan, param_dtype=param_dtype)


def inputs_of(mesh: Mesh, rows: Sequence[Sequence[int]] = ROWS) -> tuple[dict[str, Any], Tensor]:
    """The rows that this rank reads, and its slice of their labels."""
    dp, own = mesh.spec.dp, mesh.tokens.get_local_rank("dp")
    first, last = own * len(rows) // dp, (own + 1) * len(rows) // dp
    inputs, labels_BS, _ = packed(rows[first:last], skip=rows[:first])
    labels_Bs = shard_sequence(labels_BS.numpy(), mesh.tokens.get_local_rank("sp"), mesh.spec.sp)
    return inputs, torch.from_numpy(labels_Bs)


def step(model: PreTrainedModel, mesh: Mesh, rows: Sequence[Sequence[int]] = ROWS) -> float:
    """The mean loss of all rows, whose gradients are left in `model`."""
    inputs, labels_Bs = inputs_of(mesh, rows)
    loss = summed_loss(model, inputs, labels_Bs) / global_sum(count_targets(labels_Bs))
    loss.backward()
    return global_sum(loss.detach()).item()


def whole(tensor: Tensor | None) -> Tensor | None:
    """`tensor` of all ranks together. Collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def grads_of(model: PreTrainedModel) -> dict[str, Tensor | None]:
    """The gradients of all ranks together, by name. Collective."""
    return {name: whole(param.grad) for name, param in model.named_parameters()}


def compare(
    name: str, meshes: Mapping[str, MeshConfig], recompute: RecomputeConfig | None = None, hard: str = "none"
) -> dict[str, tuple[float, float, float, str]]:
    """By mesh: relative errors of the loss, the gradient norm and the worst gradient, and whose that is."""
    errors = {}
    changes, rows = HARD[hard]
    with join_world(device="cpu") as world:
        start = make_mixture(name, **changes)
        if hard.startswith("all tokens"):
            route_alike_(start)
        plain = copy.deepcopy(start)
        expected = plain_loss(plain, packed(list(rows))[2]) if world.rank == 0 else 1.0
        theirs = {key: param.grad for key, param in plain.named_parameters()}
        for label, config in meshes.items():
            mesh = make_mesh(resolve_mesh(config, world.size), device_type="cpu")
            ours = place(copy.deepcopy(start), mesh, recompute, even=hard != "rows of different lengths")
            loss = step(ours, mesh, rows)
            norm, mine = clip_grads_(ours, float("inf")).item(), grads_of(ours)
            gathered = torch.stack([grad.norm() for grad in mine.values() if grad is not None]).norm().item()
            if world.rank == 0:
                off = abs(loss - expected) / expected, abs(norm - gathered) / gathered
                errors[label] = (*off, *worst_error(mine, theirs))
    return errors


HARD: dict[str, tuple[dict[str, Any], Sequence[Sequence[int]]]] = {
    "none": ({}, ROWS),
    "all tokens to one expert": ({"num_experts_per_tok": 1}, ROWS),
    "all tokens to two experts": ({"num_experts_per_tok": 2}, ROWS),
    "all tokens to four experts": ({}, ROWS),
    "more experts than tokens": ({"num_experts": 64}, ((3, 2), (5,), (4, 1), (1, 1, 3))),
    "every token to every expert": ({"num_experts_per_tok": 4, "topk_group": 2}, ROWS),
    "rows of different lengths": ({}, ((9, 1), (3,), (20,), (5, 6))),
}
"""What is hard: changes of a configuration, most for qwen3_moe, and the rows."""


def route_alike_(model: PreTrainedModel) -> None:
    """Routers that cannot tell experts apart choose the first, so the other ranks receive nothing."""
    for name, param in model.named_parameters():
        if name.endswith("mlp.gate.weight") and param.shape[0] < 64:
            param.data.zero_()


def table(errors: Mapping[str, Mapping[str, float]]) -> str:
    """The table of the docs: by family the worst error of a gradient on each mesh."""
    lines = [f"| family | {' | '.join(MESHES)} |", f"| --- |{' --- |' * len(MESHES)}"]
    lines += [
        f"| {name} | {' | '.join(f'{worst:.0e}' for worst in of_mesh.values())} |" for name, of_mesh in errors.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into docs/experts.md")
    write = parser.parse_args().write
    import experts  # A rank finds the function by the name of its module, which is not __main__.

    with rank_pool() as run:
        measured = {}
        for family in NAMES:
            found = run(experts.compare, 4, family, MESHES)[0]
            measured[family] = {label: error[2] for label, error in found.items()}
            print(family, measured[family], flush=True)
    if write:
        write_table(DOCS, table(measured))
