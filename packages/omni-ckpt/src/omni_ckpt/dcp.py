"""Trees to disk and back, each rank its own shards, through torch.distributed.checkpoint. Effect: disk, collective.

A save is all or nothing: every rank writes into `path.tmp`, the files are flushed to the device, a manifest of them is
written, and one rename by the first rank commits. Killed before it, there is no `path`; killed after it, `path` is
whole. A failure of any rank is raised by every rank. The same calls work in one process without a process group.
"""

import shutil
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from omni_ckpt.disk import clear, discard, publish, sync, write_json
from omni_ckpt.layout import leftovers, to_prune, writing
from omni_ckpt.manifest import Sealed, SealingFiles, damages, read_manifest, refuse_damages, seal, write_manifest
from omni_ckpt.ranks import agree, alone, gather, my_rank, on_first, together
from omni_ckpt.stored import (
    INDEX_FILE,
    PLAIN_FILE,
    VERSION,
    check_coverage,
    check_files,
    one_process_is_meant,
    read_index,
    read_into,
    read_plain,
    specs_in,
)
from omni_ckpt.tree import Plain, TensorSpec, different_names, flatten, mismatches, named, with_plain, without_tensors

T = TypeVar("T")


def save_dcp(tree: Mapping[str, Any], path: Path) -> Path:
    """Write `tree` to the new directory `path`, and return it once every rank is done and it is on the device.

    Effect: collective; writes, and first deletes what a killed save left in `path.tmp`.

    Args:
        tree: nested dicts of tensors and plain values (see `tree.py`). A DTensor is written in shards. A tensor that
            is whole on several ranks must be equal on them: one copy is written, and it may be of any. Plain values
            have the same names on every rank, and those of rank 0 are written.
        path: on a disk that all ranks share.

    Raises:
        ValueError: if `path` exists, ranks disagree on `path` or on the plain names, or `tree` has leaves or keys that
            cannot be stored, each by name.
        OSError: if a rank cannot write. Nothing is published then.
    """
    path = Path(path).absolute()
    temporary = writing(path)
    task = f"save {path}"
    tensors, plain = together(task, lambda: _storable(tree, path))
    agree(task, {"the path": str(path), "the names of the plain values": sorted(plain)})
    on_first(task, lambda: _start(temporary))
    try:
        together(task, lambda: _check_shared(temporary))
        sealed = gather(together(task, lambda: _write_tensors(tensors, temporary)))
        on_first(task, lambda: _commit(tree, temporary, path, sealed))
    except (ValueError, OSError, RuntimeError):
        if my_rank() == 0:
            # Best effort: on a full disk this is the space that the next save needs. The error is the one above.
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def load_dcp(tree: Mapping[str, Any], path: Path, *, strict: bool = True, check: bool = True) -> Mapping[str, Any]:
    """`tree` with the values of checkpoint `path`. Donates `tree`: its tensors are filled in place; use the result.

    Effect: collective; reads. Shards are cut anew: the ranks and placements may differ from those of the save.

    Args:
        tree: of the same nesting as the one saved; the plain values in it only give their places.
        path: a checkpoint directory.
        strict: refuse a checkpoint that has not exactly these names, shapes and dtypes. Otherwise what has the same
            name and shape is loaded (cast to the dtype here), and the rest of `tree` is left as it is.
        check: read every file once before, each rank its share, and refuse what is not what was written. Otherwise
            only sizes are compared, and a flipped bit is loaded as it is.

    Raises:
        ValueError: before any tensor is read, with everything that does not fit, or each damaged file, by name.
        OSError, RuntimeError: if reading fails, with the directory.
    """
    path = Path(path).absolute()
    task = f"load {path}"
    tensors, plain = together(task, lambda: _in_memory(tree))
    agree(task, {"the path": str(path)})
    index = together(task, lambda: read_index(path))
    saved_plain = together(task, lambda: flatten(read_plain(path))[1])
    on_first(task, lambda: check_files(path, index))
    if check:
        together(task, lambda: _check_share(path))
    saved = specs_in(index)
    if strict:
        # What another rank has is not unexpected: the ranks of a pipeline hold different parts of a model.
        ours = tensors.keys() | plain.keys()
        unexpected = set[str].intersection(*gather({*saved, *saved_plain} - ours))
        here = ours | unexpected
        together(task, lambda: _check_fit(tensors, plain, _only(saved, here), _only(saved_plain, here)))
    fitting = {name: tensor for name, tensor in tensors.items() if name in saved and saved[name].shape == tensor.shape}
    together(task, lambda: read_into(fitting, path, index, collective=True))
    return with_plain(tree, _only(saved_plain, plain.keys()))


def prune(root: Path, keep: int) -> list[Path]:
    """Delete the complete checkpoints under `root` beyond the newest `keep`, and return where they were.

    Effect: collective; the first rank deletes, and each checkpoint loses its name before its first file goes. What
    killed saves and prunes left is deleted, too.

    Raises:
        ValueError: if `keep` is less than 1.
        OSError: if the first rank cannot delete.
    """
    task = f"prune {root}"
    root = Path(root).absolute()
    # The first rank alone looks: others might look when it has begun.
    victims = gather(together(task, lambda: to_prune(root, keep) if my_rank() == 0 else []))[0]
    on_first(task, lambda: _delete(victims, leftovers(root)))
    return victims


def _storable(tree: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], dict[str, Plain]]:
    if path.exists():
        raise ValueError("it exists, and a checkpoint is never overwritten. Delete it or choose another path.")
    return _in_memory(tree)


def _in_memory(tree: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Plain]]:
    tensors, plain = flatten(tree)
    if meta := named("tensors on the meta device, which have no memory", [n for n, t in tensors.items() if t.is_meta]):
        raise ValueError(meta[0])
    return tensors, plain


def _start(temporary: Path) -> None:
    clear(temporary)
    temporary.mkdir(parents=True)


def _check_shared(temporary: Path) -> None:
    if not temporary.is_dir():
        raise OSError(f"{temporary}, made by rank 0, is not seen here: all ranks must share the disk.")


def _write_tensors(tensors: Mapping[str, Tensor], temporary: Path) -> dict[str, Sealed]:
    """What this rank wrote, by name of the file."""
    # One thread: with several, torch loses the error of a write and publishes an index with entries missing.
    writer = _Writer(temporary, thread_count=1, sync_files=False, overwrite=False)
    flat = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with one_process_is_meant():
        save(dict(tensors), storage_writer=writer, planner=flat, no_dist=alone())
    # Ours, since torch 2.11 syncs a file before the last of it is flushed.
    pieces = {name: sealed for name, sealed in writer.fs.sealed.items() if name.startswith(f"__{my_rank()}_")}
    for name in pieces:
        sync(temporary / name)
    return pieces


class _Writer(FileSystemWriter):
    """torch's writer, which seals what it writes, with errors that say what the system said."""

    fs: SealingFiles

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fs = SealingFiles()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            # torch closes its archive over a failed write, fails again, and raises that.
            if isinstance(error.__context__, OSError):
                raise OSError(error.__context__.errno, error.__context__.strerror, str(self.path)) from error
            raise


def _commit(tree: Mapping[str, Any], temporary: Path, path: Path, sealed: list[dict[str, Sealed]]) -> None:
    write_json({"version": VERSION, "plain": without_tensors(tree)}, temporary / PLAIN_FILE)
    sync(temporary / INDEX_FILE)
    pieces = {name: seal for each in sealed for name, seal in each.items()}
    check_coverage(read_index(temporary), {name: piece.size for name, piece in pieces.items()})
    small = {name: seal(temporary / name) for name in (PLAIN_FILE, INDEX_FILE)}
    write_manifest(temporary, pieces | small)
    publish(temporary, path)


def _check_share(path: Path) -> None:
    """Compare this rank's share of the files with what was written."""
    files = sorted(read_manifest(path).items())
    share = files if alone() else files[my_rank() :: dist.get_world_size()]
    refuse_damages(path, damages(path, dict(share)))


def _check_fit(
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Plain],
    saved: Mapping[str, TensorSpec],
    saved_plain: Mapping[str, Plain],
) -> None:
    problems = mismatches(tensors, saved) + different_names("plain values", plain, saved_plain)
    if problems:
        raise ValueError("it does not fit this run:\n  " + "\n  ".join(problems))


def _only(entries: Mapping[str, T], names: Set[str]) -> dict[str, T]:
    return {name: entry for name, entry in entries.items() if name in names}


def _delete(victims: list[Path], remains: list[Path]) -> None:
    for victim in victims:
        discard(victim)
    for remain in remains:
        clear(remain)
