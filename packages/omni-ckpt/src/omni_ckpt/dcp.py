"""Trees to disk and back, each rank its own shards, through torch.distributed.checkpoint. Effect: disk, collective.

A save is all or nothing: every rank writes into `path.tmp`, the files are flushed to the device, a manifest of them is
written, and one rename by the first rank commits. Killed before it, there is no `path`; killed after it, `path` is
whole. A failure of any rank is raised by every rank. The same calls work in one process without a process group.
"""

import copy
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from omni_ckpt.disk import clear, publish, write_json
from omni_ckpt.faults import At, nothing
from omni_ckpt.layout import is_complete, writing
from omni_ckpt.manifest import INDEX_FILE, PLAIN_FILE, Sealed, refuse_damages, seal, write_manifest
from omni_ckpt.places import as_place, is_folder, is_local, is_there, sync
from omni_ckpt.ranks import Group, agree, gather, make_group, my_rank, on_first, together
from omni_ckpt.recover import check_together
from omni_ckpt.saving import Saving
from omni_ckpt.staging import Staging, fill_staging_, local_shard, make_staging
from omni_ckpt.storage import (
    VERSION,
    check_coverage,
    check_files,
    read_index,
    read_into,
    read_plain,
    specs_in,
)
from omni_ckpt.tree import (
    Plain,
    TensorSpec,
    as_cast,
    different_names,
    flatten,
    mismatches,
    named,
    with_plain,
    without_tensors,
)
from omni_ckpt.write import write_tensors

T = TypeVar("T")


def save_dcp(
    tree: Mapping[str, Any],
    path: Path,
    *,
    group: Group = None,
    then: Callable[[Path], None] | None = None,
    at: At = nothing,
) -> Path:
    """Write `tree` to the new directory `path`, and return it once every rank is done and it is on the device.

    Effect: collective; writes, and first deletes what a killed save left in `path.tmp`.

    Args:
        tree: nested dicts of tensors and plain values (see `tree.py`). A DTensor is written in shards. A tensor that
            is whole on several ranks must be equal on them: one copy is written, and it may be of any. Plain values
            have the same names on every rank, and those of rank 0 are written.
        path: on a disk that all ranks share, or in object storage: see `as_place`.
        group: of all ranks, for what they tell each other; None is the default group.
        then: called by the first rank with `path`, after the commit: to prune, for example.
        at: called at each point of the way: see `faults.py`.

    Raises:
        ValueError: if `path` exists, ranks disagree on `path` or on the plain names, or `tree` has leaves or keys that
            cannot be stored, each by name.
        OSError: if a rank cannot write. Nothing is published then.
    """
    return _save(lambda: _live(tree), as_place(path), group, then, at)


def begin_save_dcp(
    tree: Mapping[str, Any],
    path: Path,
    *,
    staging: Staging | None = None,
    group: Group = None,
    then: Callable[[Path], None] | None = None,
    at: At = nothing,
) -> Saving:
    """Begin to write `tree` as `save_dcp` does, and return once its values are in host memory: it may change then.

    Effect: collective; starts a thread, which does the rest. What it is told to every rank by the result: call it to
    wait, and look at `done` at every step, so that a failure does not stay unseen.

    Args:
        tree: as of `save_dcp`.
        path: as of `save_dcp`.
        staging: room for its values, from `make_staging`. None makes it, which on a GPU takes longer than to fill it.
        group: of all ranks, from `make_group`, and for nothing else while the save is under way. None makes one for
            this save.
        then: as of `save_dcp`; called in the same thread.
        at: as of `save_dcp`.
    """
    own = make_group() if group is None else None
    taken: list[_Content] = []
    failures: list[Exception] = []
    room = staging
    try:
        live = _live(tree)
        plain = copy.deepcopy(live.plain)
        room = room or make_staging(tree)
        fill_staging_(room, live.shards)
        taken.append(replace(live, shards=room.shards, plain=plain))
    except (ValueError, RuntimeError, MemoryError) as error:
        # Told to every rank by the thread: the others have begun already.
        failures.append(error)

    def take() -> _Content:
        if failures:
            raise failures[0]
        return taken[0]

    def work() -> Path:
        try:
            return _save(take, as_place(path), group or own, then, at)
        finally:
            if taken and room is not None:
                room.busy.release()

    return Saving(work, own)


def load_dcp(
    tree: Mapping[str, Any], path: Path, *, strict: bool = True, check: bool = True, casts: Sequence[str] = ()
) -> Mapping[str, Any]:
    """`tree` with the values of checkpoint `path`. Donates `tree`: its tensors are filled in place; use the result.

    Effect: collective; reads. Shards are cut anew: the ranks and placements may differ from those of the save.

    Args:
        tree: of the same nesting as the one saved; the plain values in it only give their places.
        path: a checkpoint directory.
        strict: refuse a checkpoint that has not exactly these names, shapes and dtypes. Otherwise what has the same
            name and shape is loaded (cast to the dtype here), and the rest of `tree` is left as it is.
        check: read every file once before, each rank its share, and refuse what is not what was written. Otherwise
            only sizes are compared, and a flipped bit is loaded as it is.
        casts: names below which floats of another width are taken: they are cast to the dtype here.

    Raises:
        ValueError: before any tensor is read, with everything that does not fit, or each damaged file, by name.
        OSError, RuntimeError: if reading fails, with the directory.
    """
    path = as_place(path)
    task = f"load {path}"
    tensors, plain = together(task, lambda: _in_memory(tree))
    agree(task, {"the path": str(path)})
    index = together(task, lambda: read_index(path))
    saved_plain = together(task, lambda: flatten(read_plain(path))[1])
    on_first(task, lambda: check_files(path, index))
    if check:
        refuse_damages(path, check_together(path))
    saved = specs_in(index)
    if strict:
        # What another rank has is not unexpected: the ranks of a pipeline hold different parts of a model.
        ours = tensors.keys() | plain.keys()
        unexpected = set[str].intersection(*gather({*saved, *saved_plain} - ours))
        here = ours | unexpected
        found = as_cast(_only(saved, here), tensors, casts)
        together(task, lambda: _check_fit(tensors, plain, found, _only(saved_plain, here)))
    fitting = {name: tensor for name, tensor in tensors.items() if name in saved and saved[name].shape == tensor.shape}
    together(task, lambda: read_into(fitting, path, index, collective=True))
    return with_plain(tree, _only(saved_plain, plain.keys()))


@dataclass(frozen=True, slots=True)
class _Content:
    """What is to be written."""

    tensors: Mapping[str, Tensor]
    """As they are laid out over ranks; only that is read."""
    shards: Mapping[str, Tensor]
    """The values of this rank."""
    plain: Mapping[str, Any]
    """The tree less its tensors."""


def _live(tree: Mapping[str, Any]) -> _Content:
    tensors = _in_memory(tree)[0]
    return _Content(tensors, {name: local_shard(tensor) for name, tensor in tensors.items()}, without_tensors(tree))


def _save(take: Callable[[], _Content], path: Path, group: Group, then: Callable[[Path], None] | None, at: At) -> Path:
    """The whole way of a save, with the content that `take()` gives."""
    temporary = writing(path)
    task = f"save {path}"
    content = together(task, lambda: _storable(take, path, at), group)
    names = sorted(flatten(content.plain)[1])
    agree(task, {"the path": str(path), "the names of the plain values": names}, group)
    on_first(task, lambda: _start(temporary), group)
    try:
        together(task, lambda: _check_shared(temporary, at), group)
        sealed = gather(together(task, lambda: _write_shards(content, temporary, group, at), group), group)
        on_first(task, lambda: _commit(content.plain, temporary, path, sealed, at), group)
    except (ValueError, OSError, RuntimeError):
        if my_rank() == 0 and temporary != path:
            # Best effort: on a full disk this is the space that the next save needs. The error is the one above. In
            # object storage it stays for the next save: it may be committed, and a rank that is lost may still write.
            with suppress(OSError):
                clear(temporary)
        raise
    if then is not None:
        on_first(f"clear up after {path}", lambda: then(path), group)
    return path


def _storable(take: Callable[[], _Content], path: Path, at: At) -> _Content:
    content = take()
    at("staged", path)
    if is_there(path) if is_local(path) else is_complete(path):
        raise ValueError("it exists, and a checkpoint is never overwritten. Delete it or choose another path.")
    return content


def _in_memory(tree: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Plain]]:
    tensors, plain = flatten(tree)
    if meta := named("tensors on the meta device, which have no memory", [n for n, t in tensors.items() if t.is_meta]):
        raise ValueError(meta[0])
    return tensors, plain


def _start(temporary: Path) -> None:
    clear(temporary)
    temporary.mkdir(parents=True, exist_ok=not is_local(temporary))


def _check_shared(temporary: Path, at: At) -> None:
    if is_local(temporary) and not is_folder(temporary):
        raise OSError(f"{temporary}, made by rank 0, is not seen here: all ranks must share the disk.")
    at("begun", temporary)


def _write_shards(content: _Content, temporary: Path, group: Group, at: At) -> dict[str, Sealed]:
    sealed = write_tensors(
        content.tensors, content.shards, temporary, group=group, before_piece=lambda: at("writing", temporary)
    )
    at("written", temporary)
    return sealed


def _commit(plain: Mapping[str, Any], temporary: Path, path: Path, sealed: list[dict[str, Sealed]], at: At) -> None:
    write_json({"version": VERSION, "plain": plain}, temporary / PLAIN_FILE)
    sync(temporary / INDEX_FILE)
    pieces = {name: piece for each in sealed for name, piece in each.items()}
    check_coverage(read_index(temporary), {name: piece.size for name, piece in pieces.items()})
    at("indexed", temporary)
    small = {name: seal(temporary / name) for name in (PLAIN_FILE, INDEX_FILE)}
    write_manifest(temporary, pieces | small)
    at("sealed", temporary)
    publish(temporary, path)
    at("published", path)


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
