"""What a checkpoint of a run holds, and a run's state from it: the tree on disk has the shape of the tree in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni_ckpt import load_dcp, prune, save_dcp, step_dir
from omni_data import Cursor, cursor_from_json, cursor_to_json, merge_cursors
from omni_parallel import TrainState, gather_objects, restore_state, state_tree

Order = Mapping[str, Any]
"""What fixes the rows of a step, beside the cursor."""


def load_run(state: TrainState, found: Path, order: Order) -> tuple[TrainState, Cursor]:
    """The state and the place in the data that checkpoint `found` has, whatever mesh wrote it. Donates `state`.

    Effect: collective; reads.
    """
    tree = load_dcp(_tree(state, Cursor(), order), found)
    return restore_state(state, tree["state"]), cursor_from_json(tree["cursor"])


def save_run(out: Path, state: TrainState, cursor: Cursor, order: Order, *, keep: int) -> Path:
    """The new checkpoint of `state` in `out`, of which the newest `keep` stay. Effect: collective; writes, deletes."""
    everyone = merge_cursors(gather_objects(cursor))
    path = save_dcp(_tree(state, everyone, order), step_dir(out, state.step))
    prune(out, keep)
    return path


def _tree(state: TrainState, cursor: Cursor, order: Order) -> dict[str, Any]:
    return {"state": state_tree(state), "cursor": cursor_to_json(cursor), "order": order}
