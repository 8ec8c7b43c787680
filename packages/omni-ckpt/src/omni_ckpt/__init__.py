"""Checkpoints: sharded while training, Hugging Face when done."""

from omni_ckpt.claim import claim
from omni_ckpt.contents import Contents, inspect
from omni_ckpt.dcp import begin_save_dcp, load_dcp, save_dcp
from omni_ckpt.faults import At, Fault, Point, nothing, parse_fault
from omni_ckpt.hf import merge_to_hf, plan_shards
from omni_ckpt.layout import latest, step_dir, step_of, steps
from omni_ckpt.manifest import Report, glance, verify
from omni_ckpt.places import as_place, is_local, is_there
from omni_ckpt.ranks import make_group
from omni_ckpt.recover import Choice, check_together, newest_whole, newest_whole_together, refuse_none_whole, set_aside
from omni_ckpt.retain import Retention, check_retention, clear_leftovers, prune, to_prune
from omni_ckpt.saving import Saving
from omni_ckpt.staging import Staging, make_staging, staging_bytes
from omni_ckpt.stored import read_plain, stored
from omni_ckpt.tree import TensorSpec, flatten, mismatches

__all__ = [
    "At",
    "Choice",
    "Contents",
    "Fault",
    "Point",
    "Report",
    "Retention",
    "Saving",
    "Staging",
    "TensorSpec",
    "as_place",
    "begin_save_dcp",
    "check_retention",
    "check_together",
    "claim",
    "clear_leftovers",
    "flatten",
    "inspect",
    "is_local",
    "is_there",
    "glance",
    "latest",
    "load_dcp",
    "make_group",
    "make_staging",
    "merge_to_hf",
    "mismatches",
    "newest_whole",
    "newest_whole_together",
    "nothing",
    "parse_fault",
    "plan_shards",
    "prune",
    "read_plain",
    "refuse_none_whole",
    "save_dcp",
    "set_aside",
    "staging_bytes",
    "step_dir",
    "step_of",
    "steps",
    "stored",
    "to_prune",
    "verify",
]
