"""What ranks do for `test_moments`: training with moments that are narrow, and with moments that are away."""

from collections.abc import Callable
from pathlib import Path

import torch
from experts import make_mixture, place, step
from summing import WIDTH, backward, make_net
from torch import Tensor

from omni_ckpt import begin_save_dcp, load_dcp, make_staging
from omni_mesh import MeshConfig, join_world, make_mesh, resolve_mesh
from omni_parallel import (
    ParallelPlan,
    TrainState,
    clip_scale,
    constant,
    grad_norm,
    restore_state,
    shard_fsdp,
    state_tree,
    update,
)
from omni_parallel.adamw import AdamW
from omni_parallel.ferry import Ferry
from omni_parallel.local import local
from omni_parallel.optim import group_params
from omni_parallel.rounding import number_shard

Backward = Callable[[TrainState], object]


def make_state(model: torch.nn.Module, dtype: torch.dtype | None, *, away: bool) -> TrainState:
    """The state of `model`, of which everything that can be is away in pieces of 16 numbers."""
    ferry = Ferry(smallest=1, most=16) if away else None
    return TrainState(0, model, AdamW(group_params(model.parameters(), 0.1), state_dtype=dtype, ferry=ferry))


def train(state: TrainState, steps: int, differentiate: Backward) -> TrainState:
    """As the app does."""
    for _ in range(steps):
        differentiate(state)
        scale = clip_scale(grad_norm(state.model), 0.1)
        state = update(state, constant(1e-2), scale=scale, keep_casts=True)
    return state


def leaves(state: TrainState) -> dict[str, Tensor]:
    """What this rank has of a state."""
    tree = state_tree(state)
    named = {"model": tree["model"], **tree["optimizer"]}
    return {f"{part}.{name}": local(x).detach().cpu().clone() for part, own in named.items() for name, x in own.items()}


def go_on(fresh: Callable[[bool], TrainState], path: Path, differentiate: Backward) -> list[dict[str, Tensor]]:
    """What states have after five steps: one whose moments stay, one whose are away, and both kinds, gone on with from
    a checkpoint that the second saved after three."""
    stays, away = (train(fresh(kind), 3, differentiate) for kind in (False, True))
    tree = {"state": state_tree(away)}
    begin_save_dcp(tree, path, staging=make_staging(tree))()
    resumed = [fresh(kind) for kind in (False, True)]
    for i, state in enumerate(resumed):
        resumed[i] = restore_state(state, load_dcp({"state": state_tree(state)}, path)["state"])
    assert all(state.step == 3 for state in resumed)
    return [leaves(train(state, 2, differentiate)) for state in (stays, away, *resumed)]


def train_all_ways(config: MeshConfig, dtype: torch.dtype | None, path: Path) -> tuple[list[dict[str, Tensor]], int]:
    """Of a net that is sharded, or copied; and which part of it this rank has."""
    with join_world() as world:
        mesh = make_mesh(resolve_mesh(config, world.size), device_type=world.device.type)

        def fresh(away: bool) -> TrainState:
            model = shard_fsdp(make_net().to(world.device), mesh, ParallelPlan(blocks=("1", "3")))
            return make_state(model, dtype, away=away)

        def differentiate(state: TrainState) -> None:
            random = torch.Generator().manual_seed(state.step * world.size + world.rank)
            backward(state.model, torch.randn(7, 5, generator=random).to(world.device, torch.bfloat16))

        state = fresh(False)
        part = number_shard(state.model.get_parameter("1.weight"))
        assert local(state.model.get_parameter("1.weight")).shape[1] == WIDTH
        return go_on(fresh, path, differentiate), part


def train_experts_all_ways(config: MeshConfig, path: Path) -> list[dict[str, Tensor]]:
    """Of a mixture with spread experts, which computes in bf16."""
    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(config, world.size), device_type="cpu")

        def fresh(away: bool) -> TrainState:
            model = place(make_mixture("qwen3_moe"), mesh, param_dtype=torch.bfloat16)
            return make_state(model, torch.bfloat16, away=away)

        return go_on(fresh, path, lambda state: step(state.model, mesh))  # pyright: ignore[reportArgumentType]
