"""What each rank runs in `test_experts.py`: a pool sends functions by the name of their module."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from experts import MESHES, ROWS, grads_of, inputs_of, make_mixture, place, step, whole
from memory import peak_of
from sequence import TYPES, make_config, make_kind, packed, plain_loss, worst_error
from sequence_ranks import Counting
from step import accumulate_grads_
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from omni_ckpt import load_dcp, merge_to_hf, save_dcp
from omni_data import shard_sequence
from omni_mesh import Mesh, MeshConfig, join_world, make_mesh, resolve_mesh
from omni_models import (
    count_loads,
    count_targets,
    describe,
    fill_weights,
    hf_keys,
    next_biases,
    read_biases,
    record_routing,
    set_biases_,
    summed_loss,
)
from omni_parallel import (
    AdamWConfig,
    RecomputeConfig,
    clip_scale,
    constant,
    ep,
    global_sum,
    grad_norm,
    init_state,
    named_tensors,
    restore_state,
    state_tree,
    update,
)
from omni_parallel.casts import kept_cast


def new_mesh(config: MeshConfig, world_size: int) -> Mesh:
    return make_mesh(resolve_mesh(config, world_size), device_type="cpu")


def train_and_save(name: str, config: MeshConfig, path: Path, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of some steps, then of two more after a save, and the state saved, whole. On rank 0."""
    with join_world(device="cpu") as world:
        mesh = new_mesh(config, world.size)
        state = init_state(place(make_mixture(name), mesh), AdamWConfig())
        losses = []
        for done in range(steps + 2):
            if done == steps:
                save_dcp({"state": state_tree(state)}, path)
                saved = gather(state_tree(state))
            losses.append(step(state.model, mesh))  # pyright: ignore[reportArgumentType]
            state = update(state, constant(1e-3))
        return losses[steps:], saved


def load_and_train(name: str, config: MeshConfig, path: Path) -> tuple[list[float], dict[str, Tensor]]:
    """The state loaded onto another mesh, whole, and the losses of two more steps. On rank 0."""
    with join_world(device="cpu") as world:
        mesh = new_mesh(config, world.size)
        state = init_state(fill_weights(place(empty(name), mesh), None, seed=9), AdamWConfig())
        state = restore_state(state, load_dcp({"state": state_tree(state)}, path)["state"])
        found, losses = gather(state_tree(state)), []
        for _ in range(2):
            losses.append(step(state.model, mesh))  # pyright: ignore[reportArgumentType]
            state = update(state, constant(1e-3))
        return losses, found


def gather(tree: Mapping[str, Any], above: str = "") -> dict[str, Tensor]:
    """Every tensor of `tree`, of all ranks together, by its flat name. Collective."""
    found: dict[str, Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= gather(value, f"{above}{key}.")
        elif isinstance(value, Tensor):
            together = whole(value)
            assert together is not None
            found[f"{above}{key}"] = together.detach().clone()
    return found


def empty(name: str) -> Any:
    """The tiny mixture `name`, without weights."""
    model = make_mixture(name)
    with torch.device("meta"):
        return type(model)(copy.deepcopy(model.config)).train()


def read_and_save(name: str, config: MeshConfig, source: Path, path: Path) -> None:
    """Weights of a directory straight into a sharded model, and from it into a checkpoint."""
    with join_world(device="cpu") as world:
        model = fill_weights(place(empty(name), new_mesh(config, world.size)), source)
        experts = describe(model).experts
        held = sum(p.to_local().numel() for key in experts for p in model.get_submodule(key).parameters())
        assert held * world.size == sum(p.numel() for key in experts for p in model.get_submodule(key).parameters())
        save_dcp({"state": {"model": named_tensors(model)}}, path)


def run_twice(name: str, config: MeshConfig) -> bool:
    """Whether two runs in deterministic mode give the same bits, losses and gradients, on this rank."""
    torch.use_deterministic_algorithms(True)
    try:
        with join_world(device="cpu") as world:
            mesh = new_mesh(config, world.size)
            found = []
            for _ in range(2):
                model = place(make_mixture(name), mesh)
                found.append((step(model, mesh), grads_of(model)))
    finally:
        torch.use_deterministic_algorithms(False)
    (first, grads), (second, others) = found
    same = (torch.equal(grad, others[key]) for key, grad in grads.items() if grad is not None)
    return first == second and all(same)


GATHER = "fsdp::all_gather_copy_in"
"""The operator of torch that comes with a gather of parameters."""


def count_operators(
    name: str, config: MeshConfig, every: int, even: bool
) -> tuple[int, dict[str, int], dict[str, int]]:
    """Layers of experts, and what a second forward and backward pass run: reads by the host, and exchanges."""
    reads: list[Tensor] = []
    read = ep.read_tables
    with join_world(device="cpu") as world, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ep, "read_tables", lambda tables: reads.append(tables) or read(tables))
        mesh = new_mesh(config, world.size)
        model = place(make_mixture(name), mesh, RecomputeConfig(every), even=even)
        inputs, labels_Bs = inputs_of(mesh)
        summed_loss(model, inputs, labels_Bs).backward()
        reads.clear()
        with Counting() as forward:
            loss = summed_loss(model, inputs, labels_Bs)
        forth = len(reads)
        with Counting() as backward:
            loss.backward()
    there, back = (seen.collectives - seen.seen[GATHER] for seen in (forward, backward))
    back -= sum(isinstance(module, FSDPModule) for module in model.modules())  # Each reduces its gradients once.
    counted = {"reads": forth, "exchanges": there}, {"reads": len(reads) - forth, "exchanges": back}
    return len(describe(model).experts), *counted


def break_promise() -> str:
    """What a rank is told whose number of tokens is not that of the other."""
    with join_world(device="cpu") as world:
        mesh = new_mesh(MeshConfig(shard=2, ep=2), world.size)
        model = place(make_mixture("qwen3_moe"), mesh)
        inputs, labels_Bs = inputs_of(mesh, ROWS if world.rank else ROWS[:2])
        with pytest.raises(ValueError, match="even") as told:
            summed_loss(model, inputs, labels_Bs)
        return str(told.value)


def real_of(mesh: Mesh, inputs: Mapping[str, Any]) -> Tensor:
    """Which tokens of this rank's slice do not only lengthen the row, (T,) bool."""
    zeros_BS = torch.zeros(inputs["input_ids"].shape, dtype=torch.int64).numpy()
    real_Bs = shard_sequence(zeros_BS, mesh.tokens.get_local_rank("sp"), mesh.spec.sp) == 0
    return torch.from_numpy(real_Bs).flatten()


def compare_balance(name: str, coefficient: float) -> dict[str, tuple[float, float, str]]:
    """By mesh: relative errors of the balance loss and of the worst gradient, and whose it is. On rank 0."""
    errors = {}
    with join_world(device="cpu") as world:
        start = make_mixture(name)
        expected, theirs = balanced_plainly(copy.deepcopy(start), coefficient) if world.rank == 0 else (1.0, {})
        for label, config in MESHES.items():
            mesh = new_mesh(config, world.size)
            ours = place(copy.deepcopy(start), mesh, RecomputeConfig(every=1))
            inputs, labels_Bs = inputs_of(mesh)
            rows = {"labels_Bs": labels_Bs, "sources_B": torch.zeros(len(labels_Bs), dtype=torch.long)}
            micro = [{**inputs, **rows, "real_T": real_of(mesh, inputs)}]
            metrics, loads = accumulate_grads_(ours, micro, "auto", balance=coefficient)
            tokens = sum(map(sum, ROWS)) * describe(ours).experts_per_token
            assert all(int(load_E.sum()) == tokens for load_E in loads.values())
            mine = grads_of(ours)
            if world.rank == 0:
                off = abs(metrics["balance_loss"].item() - expected) / expected
                errors[label] = (off, *worst_error(mine, theirs))
    return errors


def balanced_plainly(model: Any, coefficient: float) -> tuple[float, dict[str, Tensor | None]]:
    """The balance loss of plain transformers over all documents, and the gradients of the whole objective."""
    _, _, documents = packed(ROWS)
    with record_routing(model) as routing:
        seen = []
        for document in documents:
            model(**document, use_cache=False)
            seen.append(list(routing.logits.values()))
    layers = tuple(torch.cat(logits) for logits in zip(*seen, strict=True))
    facts = describe(model)
    loss = load_balancing_loss_func(layers, facts.num_experts, facts.experts_per_token)
    (coefficient * loss).backward()
    plain_loss(model, documents)
    return loss.item(), {key: param.grad for key, param in model.named_parameters()}


def balance_by_biases(name: str, config: MeshConfig, steps: int) -> dict[str, Tensor]:
    """The biases after some steps that move nothing else."""
    with join_world(device="cpu") as world:
        mesh = new_mesh(config, world.size)
        model = place(make_mixture(name), mesh)
        inputs, labels_Bs = inputs_of(mesh)
        real_T = real_of(mesh, inputs)
        for _ in range(steps):
            with record_routing(model) as routing, torch.no_grad():
                summed_loss(model, inputs, labels_Bs)
            loads = {key: global_sum(load_E) for key, load_E in count_loads(routing, real_T=real_T).items()}
            set_biases_(model, next_biases(read_biases(model), loads, 0.01))
        return read_biases(model)


def check_two_models() -> None:
    """Two mixtures on two meshes, one after another and interleaved, do not disturb one another."""
    with join_world(device="cpu") as world:
        spread, flat = (new_mesh(config, world.size) for config in (MeshConfig(shard=2, ep=2), MeshConfig(shard=2)))
        alone = place(make_mixture("mixtral"), flat)
        step(alone, flat)
        first, second = place(make_mixture("mixtral"), spread), place(make_mixture("mixtral"), flat)
        losses = []
        for model, mesh in ((first, spread), (second, flat)):
            inputs, labels_Bs = inputs_of(mesh)
            losses.append(summed_loss(model, inputs, labels_Bs) / global_sum(count_targets(labels_Bs)))
        for loss in losses:
            loss.backward()
        one, other, expected = grads_of(first), grads_of(second), grads_of(alone)
        assert all(torch.equal(grad, expected[key]) for key, grad in other.items() if grad is not None)
        assert worst_error(one, expected)[0] <= 1e-5


LARGE = {"num_hidden_layers": 3, "hidden_size": 256, "moe_intermediate_size": 512, "num_experts": 32}
"""Of a model of 160 MB, whose largest tensor has 34 MB."""


def make_large(directory: Path) -> None:
    """A directory of a larger mixture in shards of 40 MB."""
    make_kind(make_config(TYPES["qwen3_moe"][1] | LARGE)).save_pretrained(directory, max_shard_size="40MB")


def read_large(config: MeshConfig, source: Path, path: Path) -> int:
    """Read it straight into a sharded model and save that: the most bytes this took beyond the parameters held."""
    with join_world(device="cpu") as world:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(make_config(TYPES["qwen3_moe"][1] | LARGE), dtype=torch.float32)
        model = place(model, new_mesh(config, world.size))
        model, peak = peak_of(lambda: fill_weights(model, source))
        save_dcp({"state": {"model": named_tensors(model)}}, path)
        return peak - sum(p.to_local().nbytes for p in model.parameters())


def merge_large(path: Path, target: Path, max_bytes: int) -> int:
    """Merge it: the most bytes this took."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(make_config(TYPES["qwen3_moe"][1] | LARGE), dtype=torch.float32)
    to_hf = hf_keys(model)
    return peak_of(lambda: merge_to_hf(path, target, to_hf=to_hf, max_bytes=max_bytes))[1]


def count_gathers(name: str, config: MeshConfig, every: int) -> tuple[int, int]:
    """Units of sharding, and how many of them a backward pass gathers."""
    with join_world(device="cpu") as world:
        mesh = new_mesh(config, world.size)
        model = place(make_mixture(name, num_hidden_layers=5), mesh, RecomputeConfig(every))
        inputs, labels_Bs = inputs_of(mesh)
        loss = summed_loss(model, inputs, labels_Bs)
        with Counting() as backward:
            loss.backward()
    units = sum(isinstance(module, FSDPModule) for module in model.modules())
    return units, backward.seen[GATHER]


def train_in_bf16(name: str, config: MeshConfig, keep_casts: bool) -> tuple[list[float], int]:
    """Losses of four steps in bf16 with an update that keeps casts or does not, and how many are kept."""
    with join_world(device="cpu") as world:
        state = init_state(
            place(make_mixture(name), new_mesh(config, world.size), param_dtype=torch.bfloat16), AdamWConfig()
        )
        mesh, losses = new_mesh(config, world.size), []
        for _ in range(4):
            losses.append(step(state.model, mesh))  # pyright: ignore[reportArgumentType]
            scale = clip_scale(grad_norm(state.model), 1.0)
            state = update(state, constant(1e-2), scale=scale, keep_casts=keep_casts)
        return losses, sum(kept_cast(param) is not None for param in state.model.parameters())


def loss_in_bf16(name: str, config: MeshConfig) -> float:
    """The loss of a mixture that computes in bf16, of all ranks together."""
    with join_world(device="cpu") as world:
        mesh = new_mesh(config, world.size)
        return step(place(make_mixture(name), mesh, param_dtype=torch.bfloat16), mesh)
