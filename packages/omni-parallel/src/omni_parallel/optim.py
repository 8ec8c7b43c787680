"""The training state and its functions, in the manner of optax: init, update, and a tree to save and restore.

The state is one frozen record. The model and the optimizer in it are handles: `update` changes what they hold and
returns the next record, so a state that was passed on must not be used again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from omni_parallel.adamw import AdamW
from omni_parallel.casts import drop_cast_
from omni_parallel.ferry import Ferry
from omni_parallel.fsdp import reshard
from omni_parallel.optim_config import OptimConfig
from omni_parallel.schedules import Schedule

_DTYPES: Final = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class TrainState:
    """Where training stands after `step` updates."""

    step: int
    model: nn.Module
    optimizer: AdamW


def check_optim(config: OptimConfig) -> None:
    """Raises `ValueError` if a setting is out of its range, with all of them. Pure."""
    b1, b2 = config.betas
    rules = [
        (config.lr >= 0, f"lr={config.lr}: must be at least 0."),
        (0 <= b1 < 1 and 0 <= b2 < 1, f"betas={config.betas}: each must be at least 0 and less than 1."),
        (config.eps > 0, f"eps={config.eps}: must be positive."),
        (config.weight_decay >= 0, f"weight_decay={config.weight_decay}: must be at least 0."),
        (config.max_norm > 0, f"max_norm={config.max_norm}: must be positive; inf turns clipping off."),
        *((scale >= 0, f"lr_scale of {name}={scale}: must be at least 0.") for name, scale in config.lr_scale),
        (config.state_dtype in _DTYPES, f"state_dtype={config.state_dtype}: must be {' or '.join(_DTYPES)}."),
    ]
    if problems := [message for holds, message in rules if not holds]:
        raise ValueError("these optimizer settings cannot work:\n" + "\n".join(f"  - {p}" for p in problems))


def scale_rates(model: nn.Module, lr_scale: Sequence[tuple[str, float]]) -> dict[nn.Parameter, float]:
    """What the learning rate of each parameter is multiplied by, if that is not one. Pure.

    Args:
        model: sharded or not.
        lr_scale: of modules, or parameters, by name.

    Raises:
        ValueError: if `model` has none of such a name, with all of them.
    """
    names = {*dict(model.named_modules()), *dict(model.named_parameters())}
    if unknown := [name for name, _ in lr_scale if name not in names]:
        raise ValueError(f"lr_scale: {type(model).__name__} has no module {', '.join(unknown)}.")
    scales = sorted(lr_scale, key=lambda each: len(each[0]))
    found = {
        param: [scale for module, scale in scales if not module or f"{name}.".startswith(f"{module}.")]
        for name, param in model.named_parameters()
    }
    return {param: own[-1] for param, own in found.items() if own and own[-1] != 1}


def group_params(
    params: Iterable[nn.Parameter], weight_decay: float, scales: Mapping[nn.Parameter, float] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """AdamW's parameter groups: matrices decay, vectors do not; parameters of different meshes, and of different
    `scales` of the learning rate, stay apart. Pure."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for param in params:
        if param.requires_grad:
            mesh = param.device_mesh if isinstance(param, DTensor) else None
            groups.setdefault((param.ndim >= 2, mesh, scales.get(param, 1.0)), []).append(param)
    return [
        {"params": members, "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale}
        for (decays, _, scale), members in groups.items()
    ]


def init_state(model: nn.Module, config: OptimConfig) -> TrainState:
    """The state before the first step. Donates `model`: shard it first, since moments lie where its parameters lie.

    Moments exist from the start, zeros, so that a checkpoint has a place to land. They have the dtype of the parameter,
    if they are not to be narrower.

    Raises:
        ValueError: if a setting is out of its range, all at once; if a module of `lr_scale` is not there; if a
            parameter that is trained is not wider than moments are to be; or if the host has not enough memory to pin
            for moments.
    """
    check_optim(config)
    groups = group_params(model.parameters(), config.weight_decay, scale_rates(model, config.lr_scale))
    dtype = None if config.state_dtype == "float32" else torch.bfloat16
    narrow = [name for name, param in model.named_parameters() if param.requires_grad and param.dtype != torch.float32]
    if dtype and narrow:
        raise ValueError(
            f"state_dtype={config.state_dtype} rounds moments of float32 parameters; {narrow[0]} and "
            f"{len(narrow) - 1} others are of another dtype: leave it at float32, which leaves moments as wide as they."
        )
    how = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    optimizer = AdamW(groups, **how, state_dtype=dtype, ferry=Ferry() if config.offload else None)
    return TrainState(step=0, model=model, optimizer=optimizer)


def update(
    state: TrainState, schedule: Schedule, *, scale: Tensor | None = None, keep_casts: bool = False
) -> TrainState:
    """The state one step on: gradients applied at the rate `schedule(state.step)` and cleared. Donates `state`.

    Args:
        state: with the gradients of a step.
        schedule: from steps done to the learning rate.
        scale: what gradients are multiplied by, while they are read: `clip_scale` for example. None for one. With nan
            the step is skipped: it counts, and its gradients are cleared, but parameters and moments are as they were.
        keep_casts: promises that nothing but this function, `state_tree` and `restore_state` touches parameters from
            now on until the next update. Those whose gradient is narrower than they are, experts that are whole on one
            rank, are then cast for the passes to come in the same go (2 bytes a parameter, kept).
    """
    reshard(state.model)  # What an evaluation has gathered would be what parameters were.
    for group in state.optimizer.param_groups:
        group["lr"] = schedule(state.step) * group["lr_scale"]
    state.optimizer.step(scale=scale, keep_casts=keep_casts)
    state.optimizer.zero_grad(set_to_none=True)
    return replace(state, step=state.step + 1)


def state_tree(state: TrainState, *, frozen: bool = True) -> dict[str, Any]:
    """`state` as nested dicts of tensors and one int: what a checkpoint holds. Shares memory with `state`.

    `{"step": int, "model": {name: tensor}, "optimizer": {"exp_avg": {name: tensor}, ...}}`. A tied parameter appears
    once, under its first name; persistent buffers are in "model". Moments are where they are held, and as narrow; it is
    waited for those that are on their way to memory of the host.

    Args:
        state: of a model on the mesh.
        frozen: whether what is not trained is in it, parameters and buffers: who leaves it out has it from elsewhere.
    """
    reshard(state.model)  # An evaluation may have left parameters gathered.
    state.optimizer.settle()
    names = {param: name for name, param in state.model.named_parameters()}
    for param in names:
        drop_cast_(param)  # Whoever gets the tree may write into it.
    moments: dict[str, dict[str, Tensor]] = {}
    for param, entries in state.optimizer.state.items():
        for key, value in entries.items():
            moments.setdefault(key, {})[names[param]] = value  # pyright: ignore[reportArgumentType]
    return {"step": state.step, "model": named_tensors(state.model, frozen=frozen), "optimizer": moments}


def named_tensors(model: nn.Module, *, frozen: bool = True) -> dict[str, Tensor]:
    """What a checkpoint holds of `model`, by name: each parameter once, then the persistent buffers; if not `frozen`,
    parameters that are trained, and nothing else. Shares memory."""
    params: dict[str, Tensor] = dict(model.named_parameters())
    if not frozen:
        return {name: param for name, param in params.items() if param.requires_grad}
    # Tied parameters have several names in a state dict; buffers that are not persistent have none.
    tied = {id(param) for param in params.values()}
    buffers = {k: v for k, v in model.state_dict(keep_vars=True).items() if id(v) not in tied}
    return params | buffers


@torch.no_grad()
def restore_state(state: TrainState, tree: Mapping[str, Any], *, frozen: bool = True) -> TrainState:
    """The state that `tree` describes, in the memory of `state`. Donates `state`.

    A tree that was filled in place (it shares its tensors with `state`) costs nothing; others are copied in, in the
    dtype of `state`. If not `frozen`, what is not trained stays as it is.

    Raises:
        ValueError: if a name of `state` is not in `tree`, all of them listed.
    """
    own = state_tree(state, frozen=frozen)
    pairs = [
        (f"{part}.{name}", tensor, found.get(name))
        for part, ours, found in (
            ("model", own["model"], tree["model"]),
            *((f"optimizer.{key}", ours, tree["optimizer"].get(key, {})) for key, ours in own["optimizer"].items()),
        )
        for name, tensor in ours.items()
    ]
    if missing := [name for name, _, found in pairs if found is None]:
        raise ValueError(f"the tree lacks {len(missing)} tensors of this state: {', '.join(missing[:10])}.")
    for _, tensor, found in pairs:
        if tensor is not found:
            tensor.copy_(found)
    return replace(state, step=int(tree["step"]))
