"""Parallel training as functions over a model: cutting rows, spreading experts, sharding, recomputation, 8-bit linear
layers, clipping, and the training state.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from omni_parallel.compile import compile_blocks as compile_blocks
    from omni_parallel.encoders import Owned as Owned
    from omni_parallel.encoders import apply_encoders as apply_encoders
    from omni_parallel.encoders import send_media as send_media
    from omni_parallel.ep import ExpertsFn as ExpertsFn
    from omni_parallel.ep import apply_ep as apply_ep
    from omni_parallel.ep import expert_parallel as expert_parallel
    from omni_parallel.facts import ModelFacts as ModelFacts
    from omni_parallel.fp8 import apply_fp8 as apply_fp8
    from omni_parallel.fp8 import fp8_problems as fp8_problems
    from omni_parallel.fsdp import reshard as reshard
    from omni_parallel.fsdp import shard_fsdp as shard_fsdp
    from omni_parallel.media import Medium as Medium
    from omni_parallel.media import Route as Route
    from omni_parallel.media import balance as balance
    from omni_parallel.media import route_media as route_media
    from omni_parallel.media import take_turns as take_turns
    from omni_parallel.offload import offload_blocks as offload_blocks
    from omni_parallel.optim import TrainState as TrainState
    from omni_parallel.optim import check_optim as check_optim
    from omni_parallel.optim import init_state as init_state
    from omni_parallel.optim import named_tensors as named_tensors
    from omni_parallel.optim import restore_state as restore_state
    from omni_parallel.optim import state_tree as state_tree
    from omni_parallel.optim import update as update
    from omni_parallel.optim_config import AdamWConfig as AdamWConfig
    from omni_parallel.optim_config import OptimConfig as OptimConfig
    from omni_parallel.parts import shard_parts as shard_parts
    from omni_parallel.parts import split_plan as split_plan
    from omni_parallel.plan import ParallelPlan as ParallelPlan
    from omni_parallel.plan import RecomputeConfig as RecomputeConfig
    from omni_parallel.plan import has_shared_experts as has_shared_experts
    from omni_parallel.plan import plan_parallel as plan_parallel
    from omni_parallel.recompute import recompute_blocks as recompute_blocks
    from omni_parallel.reduce import clip_grads_ as clip_grads_
    from omni_parallel.reduce import clip_scale as clip_scale
    from omni_parallel.reduce import gather_objects as gather_objects
    from omni_parallel.reduce import global_sum as global_sum
    from omni_parallel.reduce import grad_norm as grad_norm
    from omni_parallel.schedules import Schedule as Schedule
    from omni_parallel.schedules import constant as constant
    from omni_parallel.schedules import linear as linear
    from omni_parallel.schedules import warmup_cosine as warmup_cosine
    from omni_parallel.schedules import warmup_stable_decay as warmup_stable_decay
    from omni_parallel.sequence import AttentionFn as AttentionFn
    from omni_parallel.sequence import apply_ulysses as apply_ulysses
    from omni_parallel.sequence import heads_to_seq as heads_to_seq
    from omni_parallel.sequence import seq_to_heads as seq_to_heads
    from omni_parallel.sequence import ulysses as ulysses
    from omni_parallel.tile import tile_mlps as tile_mlps

_HOMES: Final = {
    "compile": "compile_blocks",
    "encoders": "Owned apply_encoders send_media",
    "ep": "ExpertsFn apply_ep expert_parallel",
    "facts": "ModelFacts",
    "fp8": "apply_fp8 fp8_problems",
    "fsdp": "reshard shard_fsdp",
    "media": "Medium Route balance route_media take_turns",
    "offload": "offload_blocks",
    "optim": "TrainState check_optim init_state named_tensors restore_state state_tree update",
    "optim_config": "AdamWConfig OptimConfig",
    "parts": "shard_parts split_plan",
    "plan": "ParallelPlan RecomputeConfig has_shared_experts plan_parallel",
    "recompute": "recompute_blocks",
    "reduce": "clip_grads_ clip_scale gather_objects global_sum grad_norm",
    "schedules": "Schedule constant linear warmup_cosine warmup_stable_decay",
    "sequence": "AttentionFn apply_ulysses heads_to_seq seq_to_heads ulysses",
    "tile": "tile_mlps",
}
"""Where names are. A module is imported with the first of its names that is asked for, torch with it."""


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names.split()), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *(name for names in _HOMES.values() for name in names.split())})
