"""Checkpoints: sharded while training, Hugging Face when done."""

from omni_ckpt.dcp import load_dcp, prune, save_dcp
from omni_ckpt.hf import merge_to_hf, plan_shards
from omni_ckpt.layout import latest, step_dir, step_of, steps, to_prune
from omni_ckpt.manifest import Report, verify
from omni_ckpt.stored import read_plain, stored
from omni_ckpt.tree import TensorSpec, flatten, mismatches

__all__ = [
    "Report",
    "TensorSpec",
    "flatten",
    "latest",
    "load_dcp",
    "merge_to_hf",
    "mismatches",
    "plan_shards",
    "prune",
    "read_plain",
    "save_dcp",
    "step_dir",
    "step_of",
    "steps",
    "stored",
    "to_prune",
    "verify",
]
