"""What each rank runs in `test_seed_omni.py`: a composed model on a mesh, beside itself written by hand on one rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import composing
import numpy as np
import torch
from composing import WEIGHTS, Document, document
from experts import grads_of, whole
from seeing import own_media
from sequence import worst_error
from torch import Tensor, nn

from omni_ckpt import load_dcp, merge_to_hf, save_dcp
from omni_data import Batch, Sample, document_bounds, pack_batch, shard_sequence
from omni_mesh import Mesh, MeshConfig, join_world, make_mesh, peers, resolve_mesh
from omni_models import (
    OmniModel,
    build_model,
    count_losses,
    decoder_arguments,
    describe,
    fill_weights,
    freeze_params,
    generate,
    hf_keys,
    is_text,
    list_media,
    map_attention,
    map_encoders,
    map_experts,
    mean_loss,
    route_targets,
    split_targets,
    summed_losses,
    use_attention,
    use_experts,
)
from omni_parallel import (
    AdamWConfig,
    RecomputeConfig,
    apply_encoders,
    apply_ep,
    apply_ulysses,
    constant,
    global_sum,
    grad_norm,
    init_state,
    plan_parallel,
    recompute_blocks,
    restore_state,
    send_media,
    shard_fsdp,
    shard_parts,
    split_plan,
    state_tree,
    update,
)

EVERYTHING, TEXT, SEEN, DRAWN, LAST = range(5)
"""What a row has: all media and all targets, text alone, media alone, targets alone, a target as its last token."""
ROWS: dict[int, tuple[Document, ...]] = {
    EVERYTHING: (
        document(3, "image", 4, "picture", 2, "guess", 1, seed=1),
        document(2, "audio", 1, "voice", "latent", "video", 3, seed=2),
    ),
    TEXT: (document(12, seed=5), document(7, seed=6)),
    SEEN: (document(2, "image", "image", 3, seed=7), document("video", 4, "audio", 1, seed=8)),
    DRAWN: (document(4, "picture", 1, "picture", 2, seed=9), document("latent", 1, "guess", 2, "voice", 1, seed=10)),
    LAST: (document(3, "image", 5, "latent", seed=11), document(13, "voice", 1, "picture", seed=12)),
}
PLAIN, MIXED = ("qwen3", "qwen3_moe")
TOWER = "encoders.image.tower"
SEED, STEP = 5, 2


@dataclass(frozen=True, slots=True)
class Case:
    """A step of a composed model on a mesh: rows by number, dealt to data ranks in order."""

    mesh: MeshConfig
    given: tuple[int, ...]
    family: str = PLAIN
    parts: Mapping[str, MeshConfig] = field(default_factory=dict)
    """Meshes of parts that have one of their own."""
    recompute: tuple[str, ...] = ()
    """Parts whose blocks are recomputed, "" for all around them."""
    frozen: tuple[str, ...] = ()
    seq_len: int = 36
    dtype: torch.dtype = torch.float32


def check(case: Case) -> None:
    """Every loss, every gradient and their norm are those of the same model by hand on one rank."""
    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(case.mesh, world.size), device_type="cpu")
        model = place(composing.make_model(case.family), case, mesh, world.size)
        sums, loss = step(model, case, mesh, world.rank)
        norm, mine = grad_norm(model).item(), grads_of(model)
        by_hand = composing.make_model(case.family)
        by_hand = freeze_params(by_hand, case.frozen)
        wanted, of_each = composing.loss_by_hand(by_hand, [ROWS[row] for row in case.given], SEED, STEP)
        wanted.backward()
        for name in WEIGHTS:
            expected = of_each[name].item() if name in of_each else 0.0
            assert abs(sums[name] - expected) <= 1e-5 * max(1.0, expected), (name, sums[name], expected)
        assert abs(loss - wanted.item()) < 1e-5, (loss, wanted.item())
        trained = dict(by_hand.named_parameters())
        theirs = {name: None if not p.requires_grad else or_zero(p.grad, p) for name, p in trained.items()}
        ours = {name: None if not trained[name].requires_grad else or_zero(mine[name], trained[name]) for name in mine}
        assert all(mine[name] is None for name, p in trained.items() if not p.requires_grad)
        error, where = worst_error(ours, theirs)
        assert error <= 1e-5, (where, error)
        expected = torch.stack([grad.norm() for grad in theirs.values() if grad is not None]).norm().item()
        assert abs(norm - expected) <= 1e-5 * expected


def or_zero(grad: Tensor | None, param: Tensor) -> Tensor:
    """What had no part in a step has no gradient, or one of zero."""
    return torch.zeros(param.shape) if grad is None else grad


def place(model: OmniModel, case: Case, mesh: Mesh, ranks: int) -> OmniModel:
    """The model laid over `mesh`, and its parts over theirs."""
    model = freeze_params(model, case.frozen)
    whole_plan = plan_parallel(describe(model), mesh.spec, recompute=RecomputeConfig(every=1), encoders=True)
    plan, plans = split_plan(whole_plan, list(case.parts))
    plan = plan if "" in case.recompute else replace(plan, recompute=())
    plans = {n: each if n in case.recompute else replace(each, recompute=()) for n, each in plans.items()}
    model = use_experts(use_attention(model, "eager"))
    model = apply_ulysses(model, mesh, plan, over=map_attention)
    model = apply_encoders(model, over=map_encoders)
    model = apply_ep(model, mesh, plan, over=map_experts)
    for name, own in plans.items():
        recompute_blocks(model.get_submodule(name), own)
    model = recompute_blocks(model, plan)
    meshes = {n: make_mesh(resolve_mesh(config, ranks), device_type="cpu") for n, config in case.parts.items()}
    model = shard_parts(model, meshes, plans, param_dtype=case.dtype)
    return shard_fsdp(model, mesh, plan, param_dtype=case.dtype)


def read(model: OmniModel, case: Case, mesh: Mesh) -> tuple[Batch, np.ndarray]:
    """The rows of this data rank, and which they are of all."""
    dp, own = mesh.spec.dp, mesh.tokens.get_local_rank("dp")
    rows = np.arange(own * len(case.given) // dp, (own + 1) * len(case.given) // dp)
    samples = [
        [Sample(d.tokens_N, is_text(model.config, d.tokens_N), d.arrays) for d in ROWS[case.given[row]]] for row in rows
    ]
    return pack_batch(samples, case.seq_len), rows


def step(model: OmniModel, case: Case, mesh: Mesh, rank: int) -> tuple[dict[str, float], float]:
    """Losses of all rows, summed by kind, and the loss itself; gradients are left in `model`. Collective."""
    inputs, labels_Bs = make_inputs(model, case, mesh, rank)
    counts = {name: global_sum(count) for name, count in count_losses(inputs, labels_Bs).items()}
    sums = summed_losses(model, inputs, labels_Bs)
    loss = mean_loss(sums, counts, WEIGHTS)
    loss.backward()
    told = {name: global_sum(part.detach()).item() for name, part in sums.items()}
    return told, global_sum(loss.detach()).item()


def make_inputs(model: OmniModel, case: Case, mesh: Mesh, rank: int) -> tuple[dict[str, Any], Tensor]:
    """What this rank calls the model with, and its labels. Collective."""
    batch, rows = read(model, case, mesh)
    media, targets = split_targets(model.config, batch.media)
    tokens_BS, segments_BS = torch.from_numpy(batch.tokens_BS), torch.from_numpy(batch.segments_BS)
    group, index = peers(mesh.spec, rank, "sp"), mesh.tokens.get_local_rank("sp")
    arrays = {name: torch.from_numpy(array) for name, array in media.items()}
    shown = list_media(model.config, tokens_BS, segments_BS, arrays) if rank == group[0] else {}
    size = -(-case.seq_len // mesh.spec.sp)
    owned = {kind: own_media(each, size, group) for kind, each in shown.items()}
    arguments, routes = send_media(owned, torch.device("cpu"))
    how = {"index": index, "count": mesh.spec.sp, "rows_B": rows, "seed": SEED, "step": STEP}
    routed = route_targets(model.config, batch.tokens_BS, batch.segments_BS, targets, **how)
    bounds, longest = document_bounds(batch.segments_BS)
    inputs = {
        "input_ids": tokens_BS,
        "position_ids": torch.from_numpy(batch.positions_BS),
        "cu_seqlens": torch.from_numpy(bounds),
        "max_seqlen": longest,
        "media_routes": routes,
        **arguments,
        **decoder_arguments(routed, torch.device("cpu")),
    }
    return inputs, torch.from_numpy(shard_sequence(batch.labels_BS, index, mesh.spec.sp))


def train(case: Case, path: Path | None = None, start: Path | None = None) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of two steps, from the beginning or a checkpoint, which is then written; and the parameters, whole."""
    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(case.mesh, world.size), device_type="cpu")
        model = place(composing.make_model(case.family), case, mesh, world.size)
        # A large eps, since elements of a gradient that are only what rounding leaves would be steps as all others.
        state = init_state(model if start is None else fill_weights(model, None, seed=9), AdamWConfig(eps=1e-3))
        if start is not None:
            state = restore_state(state, load_dcp({"state": state_tree(state)}, start)["state"])
        losses = []
        for _ in range(2):
            losses.append(step(model, case, mesh, world.rank)[1])
            state = update(state, constant(1e-2))
        if path is not None:
            save_dcp({"state": state_tree(state)}, path)
        found = {name: whole(param.detach()) for name, param in model.named_parameters()}
        return losses, {name: tensor.clone() for name, tensor in found.items() if tensor is not None}


def merge_parts(source: Path, target: Path, family: str) -> None:
    """A checkpoint as one directory of the hub's, and its foundation and its tower as plain ones. Effect: writes."""
    model = composing.make_model(family)
    merge_to_hf(source, target / "whole", to_hf=hf_keys(model))
    for name, part in (("foundation", model.foundation), (TOWER, model.get_submodule(TOWER))):
        merge_to_hf(source, target / name, prefix=f"state.model.{name}", to_hf=hf_keys(part))  # pyright: ignore
        part.config.save_pretrained(target / name)  # pyright: ignore


def read_back(case: Case, source: Path) -> dict[str, Tensor]:
    """The parameters, whole, of a model without weights that was laid over its meshes and then filled from `source`."""
    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(case.mesh, world.size), device_type="cpu")
        model = build_model(composing.make_config(case.family), device="meta")
        assert isinstance(model, OmniModel)
        model = fill_weights(place(model, case, mesh, world.size), source)
        return {
            name: tensor.clone() for name, p in model.named_parameters() if (tensor := whole(p.detach())) is not None
        }


def go_on(case: Case) -> list[int]:
    """A row that every rank goes on with together, codes of a picture in it first."""
    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(case.mesh, world.size), device_type="cpu")
        model = place(composing.make_model(case.family), case, mesh, world.size).eval()
        made = generate(model, torch.tensor([7, 3, composing.BEGIN]), 8, temperature=1.0, seed=4, cache=False)
        return [*made.tokens_N.tolist(), *made.outputs["picture"].tolist()]


def losses_of(case: Case) -> tuple[dict[str, float], dict[str, float]]:
    """Losses of all rows, summed by kind, and how long the gradient of each part is. On every rank the same."""
    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(case.mesh, world.size), device_type="cpu")
        model = place(composing.make_model(case.family), case, mesh, world.size)
        sums, _ = step(model, case, mesh, world.rank)
        grads = {name: grad for name, grad in grads_of(model).items() if grad is not None}
        parts = {name.rpartition(".")[0] for name in grads}
        return sums, {
            part: torch.stack([g.norm() for n, g in grads.items() if n.rpartition(".")[0] == part]).norm().item()
            for part in parts
        }


def told(case: Case, names: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
    """The sizes of the mesh that each module's parameters live on."""
    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(case.mesh, world.size), device_type="cpu")
        model: nn.Module = place(composing.make_model(case.family), case, mesh, world.size)
        params = {name: next(model.get_submodule(name).parameters()) for name in names}
        return [(name, tuple(param.device_mesh.shape)) for name, param in params.items()]  # pyright: ignore
