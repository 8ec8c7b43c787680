"""The shards of a rank to files, through the planner and the writer of torch.distributed.checkpoint. Effect: disk."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from omni_ckpt.files import SealingFiles
from omni_ckpt.manifest import Sealed
from omni_ckpt.places import sync
from omni_ckpt.ranks import Group, alone, my_rank
from omni_ckpt.storage import one_process_is_meant


def write_tensors(
    tensors: Mapping[str, Tensor],
    shards: Mapping[str, Tensor],
    temporary: Path,
    *,
    group: Group,
    before_piece: Callable[[], None],
) -> dict[str, Sealed]:
    """Write the pieces that are this rank's to write, and on the first rank the index. Effect: collective; disk.

    Args:
        tensors: as `flatten` gives them; of these only shapes and placements are read.
        shards: the values of what this rank holds of each.
        temporary: a directory.
        group: of all ranks.
        before_piece: called before anything is written.

    Returns:
        What this rank wrote, by name of the file; it is on the device.
    """
    # One thread: with several, torch loses the error of a write and publishes an index with entries missing. Nothing is
    # copied ahead of its writing, for which torch would wait for all that the GPU is asked for.
    writer = _Writer(
        temporary, before_piece, thread_count=1, per_thread_copy_ahead=0, sync_files=False, overwrite=False
    )
    with one_process_is_meant():
        save(
            dict(tensors),
            storage_writer=writer,
            planner=_Planner(shards),
            process_group=group,
            no_dist=alone(),
        )
    # Ours, since torch 2.11 syncs a file before the last of it is flushed.
    pieces = {name: sealed for name, sealed in writer.fs.sealed.items() if name.startswith(f"__{my_rank()}_")}
    for name in pieces:
        sync(temporary / name)
    return pieces


class _Planner(DefaultSavePlanner):
    """torch's planner, which plans for the tensors and takes values from the shards."""

    def __init__(self, shards: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.shards = shards

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.shards[index.fqn]


class _Writer(FileSystemWriter):
    """torch's writer, which seals what it writes, with errors that say what the system said."""

    fs: SealingFiles

    def __init__(self, path: Path, before_piece: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(Path(), **kwargs)  # torch's own files know local paths only.
        self.fs, self.path = SealingFiles(before_piece), path

    def storage_meta(self) -> None:
        """Nothing: torch would put the path of the temporary directory into the index, which is of no use later."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            # torch closes its archive over a failed write, fails again, and raises that.
            if isinstance(error.__context__, OSError):
                raise OSError(error.__context__.errno, error.__context__.strerror, str(self.path)) from error
            raise
