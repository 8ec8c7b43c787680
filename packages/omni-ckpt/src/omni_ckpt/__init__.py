"""Checkpoints: sharded while training, Hugging Face when done."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from omni_ckpt.claim import claim as claim

if TYPE_CHECKING:
    from omni_ckpt.contents import Contents as Contents
    from omni_ckpt.contents import inspect as inspect
    from omni_ckpt.dcp import begin_save_dcp as begin_save_dcp
    from omni_ckpt.dcp import load_dcp as load_dcp
    from omni_ckpt.dcp import save_dcp as save_dcp
    from omni_ckpt.faults import At as At
    from omni_ckpt.faults import Fault as Fault
    from omni_ckpt.faults import Point as Point
    from omni_ckpt.faults import nothing as nothing
    from omni_ckpt.faults import parse_fault as parse_fault
    from omni_ckpt.hf import merge_to_hf as merge_to_hf
    from omni_ckpt.hf import plan_shards as plan_shards
    from omni_ckpt.layout import latest as latest
    from omni_ckpt.layout import step_dir as step_dir
    from omni_ckpt.layout import step_of as step_of
    from omni_ckpt.layout import steps as steps
    from omni_ckpt.manifest import Report as Report
    from omni_ckpt.manifest import glance as glance
    from omni_ckpt.manifest import verify as verify
    from omni_ckpt.places import as_place as as_place
    from omni_ckpt.places import is_local as is_local
    from omni_ckpt.places import is_there as is_there
    from omni_ckpt.ranks import make_group as make_group
    from omni_ckpt.recover import Choice as Choice
    from omni_ckpt.recover import check_together as check_together
    from omni_ckpt.recover import newest_whole as newest_whole
    from omni_ckpt.recover import newest_whole_together as newest_whole_together
    from omni_ckpt.recover import refuse_none_whole as refuse_none_whole
    from omni_ckpt.recover import set_aside as set_aside
    from omni_ckpt.retain import Retention as Retention
    from omni_ckpt.retain import check_retention as check_retention
    from omni_ckpt.retain import clear_leftovers as clear_leftovers
    from omni_ckpt.retain import prune as prune
    from omni_ckpt.retain import to_prune as to_prune
    from omni_ckpt.saving import Saving as Saving
    from omni_ckpt.staging import Staging as Staging
    from omni_ckpt.staging import make_staging as make_staging
    from omni_ckpt.staging import staging_bytes as staging_bytes
    from omni_ckpt.storage import read_plain as read_plain
    from omni_ckpt.storage import stored as stored
    from omni_ckpt.tree import TensorSpec as TensorSpec
    from omni_ckpt.tree import flatten as flatten
    from omni_ckpt.tree import mismatches as mismatches

_HOMES: Final = {
    "contents": "Contents inspect",
    "dcp": "begin_save_dcp load_dcp save_dcp",
    "faults": "At Fault Point nothing parse_fault",
    "hf": "merge_to_hf plan_shards",
    "layout": "latest step_dir step_of steps",
    "manifest": "Report glance verify",
    "places": "as_place is_local is_there",
    "ranks": "make_group",
    "recover": "Choice check_together newest_whole newest_whole_together refuse_none_whole set_aside",
    "retain": "Retention check_retention clear_leftovers prune to_prune",
    "saving": "Saving",
    "staging": "Staging make_staging staging_bytes",
    "storage": "read_plain stored",
    "tree": "TensorSpec flatten mismatches",
}
"""Where names are. A module is imported with the first of its names that is asked for, torch with it."""

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


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names.split()), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *(name for names in _HOMES.values() for name in names.split())})
