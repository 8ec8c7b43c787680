"""Parallel training as functions over a model: cutting rows, spreading experts, sharding, recomputation, clipping, and
the training state.
"""

from omni_parallel.ep import ExpertsFn as ExpertsFn
from omni_parallel.ep import apply_ep as apply_ep
from omni_parallel.ep import expert_parallel as expert_parallel
from omni_parallel.fp8 import apply_fp8 as apply_fp8
from omni_parallel.fp8 import fp8_problems as fp8_problems
from omni_parallel.fsdp import reshard as reshard
from omni_parallel.fsdp import shard_fsdp as shard_fsdp
from omni_parallel.offload import offload_blocks as offload_blocks
from omni_parallel.optim import AdamWConfig as AdamWConfig
from omni_parallel.optim import OptimConfig as OptimConfig
from omni_parallel.optim import TrainState as TrainState
from omni_parallel.optim import check_optim as check_optim
from omni_parallel.optim import init_state as init_state
from omni_parallel.optim import named_tensors as named_tensors
from omni_parallel.optim import restore_state as restore_state
from omni_parallel.optim import state_tree as state_tree
from omni_parallel.optim import update as update
from omni_parallel.plan import ModelFacts as ModelFacts
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
from omni_parallel.ulysses import AttentionFn as AttentionFn
from omni_parallel.ulysses import apply_ulysses as apply_ulysses
from omni_parallel.ulysses import heads_to_seq as heads_to_seq
from omni_parallel.ulysses import seq_to_heads as seq_to_heads
from omni_parallel.ulysses import ulysses as ulysses
