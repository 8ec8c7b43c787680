"""The training state and its functions, in the manner of optax: init, update, and a tree to save and restore.

The state is one frozen record. The model and the optimizer in it are handles: `update` changes what they hold and
returns the next record, so a state that was passed on must not be used again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from omni_parallel.adamw import AdamW
from omni_parallel.casts import drop_cast_
from omni_parallel.ferry import Ferry
from omni_parallel.fsdp import reshard
from omni_parallel.schedules import Schedule


@dataclass(frozen=True, slots=True)
class AdamWConfig:
    """AdamW (Loshchilov and Hutter, 2017, arXiv:1711.05101) and gradient clipping."""

    lr: float = 1e-3
    """Learning rate at the peak of the schedule."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moments."""
    eps: float = 1e-8
    """Added to the square root of the second moment."""
    weight_decay: float = 0.1
    """Decay of matrices; vectors (norms, biases) do not decay."""
    max_norm: float = 1.0
    """Largest global gradient norm; inf turns clipping off."""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of both moments. bfloat16: 4 bytes a parameter less; what changes them is computed in float32, and rounded up or
    down by dice, so that it is right on average. Dice depend on step, parameter and place on its rank alone: a run that
    goes on throws them as if it had never stopped; one on another mesh throws others."""
    offload: bool = False
    """Hold both moments in pinned memory of the host, from where they come in pieces when parameters are updated. Frees
    8 bytes a parameter on the GPU (4 in bfloat16); tensors under 1 MiB stay; not on a CPU. An update takes as long as
    the link to the host needs for them."""


OptimConfig = AdamWConfig
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
        (config.state_dtype in _DTYPES, f"state_dtype={config.state_dtype}: must be {' or '.join(_DTYPES)}."),
    ]
    if problems := [message for holds, message in rules if not holds]:
        raise ValueError("these optimizer settings cannot work:\n" + "\n".join(f"  - {p}" for p in problems))


def group_params(params: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's parameter groups: matrices decay, vectors do not; parameters of different meshes stay apart. Pure."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for param in params:
        if param.requires_grad:
            mesh = param.device_mesh if isinstance(param, DTensor) else None
            groups.setdefault((param.ndim >= 2, mesh), []).append(param)
    return [
        {"params": members, "weight_decay": weight_decay if decays else 0.0} for (decays, _), members in groups.items()
    ]


def init_state(model: nn.Module, config: OptimConfig) -> TrainState:
    """The state before the first step. Donates `model`: shard it first, since moments lie where its parameters lie.

    Moments exist from the start, zeros, so that a checkpoint has a place to land. They have the dtype of the parameter,
    if they are not to be narrower.

    Raises:
        ValueError: if a setting is out of its range, all at once; if a parameter that is trained is not wider than
            moments are to be; or if the host has not enough memory to pin for moments.
    """
    check_optim(config)
    groups = group_params(model.parameters(), config.weight_decay)
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
        group["lr"] = schedule(state.step)
    state.optimizer.step(scale=scale, keep_casts=keep_casts)
    state.optimizer.zero_grad(set_to_none=True)
    return replace(state, step=state.step + 1)


def state_tree(state: TrainState) -> dict[str, Any]:
    """`state` as nested dicts of tensors and one int: what a checkpoint holds. Shares memory with `state`.

    `{"step": int, "model": {name: tensor}, "optimizer": {"exp_avg": {name: tensor}, ...}}`. A tied parameter appears
    once, under its first name; persistent buffers are in "model". Moments are where they are held, and as narrow; it is
    waited for those that are on their way to memory of the host.
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
    return {"step": state.step, "model": named_tensors(state.model), "optimizer": moments}


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of `model`, by name: each parameter once, then the persistent buffers. Shares memory."""
    params: dict[str, Tensor] = dict(model.named_parameters())
    # Tied parameters have several names in a state dict; buffers that are not persistent have none.
    tied = {id(param) for param in params.values()}
    buffers = {k: v for k, v in model.state_dict(keep_vars=True).items() if id(v) not in tied}
    return params | buffers


@torch.no_grad()
def restore_state(state: TrainState, tree: Mapping[str, Any]) -> TrainState:
    """The state that `tree` describes, in the memory of `state`. Donates `state`.

    A tree that was filled in place (it shares its tensors with `state`) costs nothing; others are copied in, in the
    dtype of `state`.

    Raises:
        ValueError: if a name of `state` is not in `tree`, all of them listed.
    """
    own = state_tree(state)
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
