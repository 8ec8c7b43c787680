"""What a checkpoint directory holds, read without trusting it. Effect: disk.

    .metadata         index of torch.distributed.checkpoint: names, shapes, dtypes, and where each piece is
    __0_0.distcp      the pieces that rank 0 wrote; one file for each rank
    state.json        the plain values, in the nesting of the tree, and the version of this format
    MANIFEST.json     the size and a digest of each of these files: see `manifest.py`

The index is a pickle, which could run any code; it is read through a list of the few types it may hold. Pieces are
read with `torch.load(weights_only=True)`. Nothing else is pickled.
"""

import io
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load

from omni_ckpt.disk import is_inside, leads_out, read_json, refuse_link
from omni_ckpt.files import Files
from omni_ckpt.manifest import INDEX_FILE, PLAIN_FILE, refuse_damages
from omni_ckpt.places import ABSENT, as_place, read_bytes, size_of
from omni_ckpt.ranks import alone
from omni_ckpt.tree import TensorSpec, flatten

VERSION = 1

# What torch 2.11 to 2.15 put into the index, private names among them; a name that moves is an error that says so.
_INDEX_TYPES = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}
# What unpickling a damaged file, and looking at what comes of it, raises, besides what `find_class` below says.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError),
    *(OverflowError, RuntimeError, ImportError),
)


def stored(path: Path, *, prefix: str = "") -> dict[str, TensorSpec]:
    """The tensors of checkpoint `path`, without reading them, by name: shapes of the whole tensors, and dtypes.

    Args:
        path: a checkpoint directory.
        prefix: only the names below this one, and without it: "state.model" gives the names of the model.

    Raises:
        ValueError: if `path` is no checkpoint, or its index is damaged.
    """
    start = f"{prefix}." if prefix else ""
    specs = specs_in(read_index(path))
    return {name.removeprefix(start): spec for name, spec in specs.items() if name.startswith(start)}


def read_plain(path: Path) -> dict[str, Any]:
    """The plain values of checkpoint `path`, in the nesting of the tree that was saved.

    Raises:
        ValueError: if `path` is no checkpoint, its plain values are damaged, or a newer version wrote them.
    """
    version, plain = read_json(path, PLAIN_FILE, _take_plain)
    if version != VERSION:
        raise ValueError(
            f"{as_place(path) / PLAIN_FILE} has version {version}; this omni_ckpt reads version {VERSION}."
        )
    return plain


def read_index(path: Path) -> Metadata:
    """The index of checkpoint `path`, in torch's form; no code in it is run, and no file outside `path` is named."""
    file = as_place(path) / INDEX_FILE
    refuse_link(file)
    try:
        content = read_bytes(file)
    except ABSENT:
        raise ValueError(f"{path} is not a checkpoint: it has no {INDEX_FILE}.") from None
    try:
        index = _IndexUnpickler(io.BytesIO(content)).load()
        wrong = _no_index(index)
    except _DAMAGE as error:
        raise ValueError(f"{file} is damaged: {error}.") from error
    if wrong:
        raise ValueError(f"{file} is damaged: {wrong}.")
    if outside := [info.relative_path for info in index.storage_data.values() if not is_inside(info.relative_path)]:
        raise ValueError(f"{file} names files outside of the checkpoint: {', '.join(map(str, outside[:10]))}.")
    return index


def _take_plain(content: Any) -> tuple[Any, dict[str, Any]]:
    version, plain = content["version"], content["plain"]
    if version == VERSION:
        flatten(plain)  # As deep as it can be walked, and of nothing but names and values.
    return version, plain


def _no_index(index: Any) -> str:
    """Why `index` is not what torch writes, in words; nothing if it is. Pure."""
    if not isinstance(index, Metadata) or not all(
        isinstance(part, dict) for part in (index.state_dict_metadata, index.storage_data)
    ):
        return "it is not an index"
    for name, entry in index.state_dict_metadata.items():
        if not isinstance(name, str) or not isinstance(entry, TensorStorageMetadata | BytesStorageMetadata):
            return f"{name!r:.50} is no tensor"
        if isinstance(entry, TensorStorageMetadata) and not _is_tensor(entry):
            return f"{name!r:.50} is no tensor that can be"
    for key, info in index.storage_data.items():
        if not isinstance(key, MetadataIndex) or not isinstance(info, _StorageInfo):
            return f"{key!r:.50} is no place of a piece"
        if not _are_sizes((info.offset, info.length)):
            return f"{key.fqn!r:.50} is at {info.offset!r:.50} and has {info.length!r:.50} bytes"
    return ""


def _is_tensor(entry: TensorStorageMetadata) -> bool:
    shapes = [entry.size] + [shape for chunk in entry.chunks for shape in (chunk.offsets, chunk.sizes)]
    alike = all(isinstance(shape, torch.Size) and len(shape) == len(entry.size) for shape in shapes)
    return alike and all(map(_are_sizes, shapes)) and isinstance(entry.properties.dtype, torch.dtype)


def _are_sizes(numbers: Iterable[Any]) -> bool:
    return all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)


def specs_in(index: Metadata) -> dict[str, TensorSpec]:
    """Name, shape and dtype of every tensor in `index`. Pure."""
    return {
        name: TensorSpec(tuple(entry.size), entry.properties.dtype)
        for name, entry in index.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def check_files(path: Path, index: Metadata) -> None:
    """Refuse a checkpoint whose files are missing or shorter than its index says.

    Raises:
        ValueError: naming each such file.
    """
    needed: dict[str, int] = {}
    for info in index.storage_data.values():
        needed[info.relative_path] = max(needed.get(info.relative_path, 0), info.offset + info.length)
    sizes = {name: size_of(path / name) for name in needed}
    links = [f"{path / name} is a link out of the checkpoint" for name in needed if leads_out(path / name)]
    short = [
        f"{path / name} is missing" if size is None else f"{path / name} has {size} of {needed[name]} bytes"
        for name, size in sizes.items()
        if size is None or size < needed[name]
    ]
    refuse_damages(path, links or short)


def check_coverage(index: Metadata, sizes: Mapping[str, int]) -> None:
    """Refuse an index whose pieces are not all in files of `sizes`, or do not cover their tensors. Pure.

    Raises:
        RuntimeError: naming each such tensor.
    """
    problems = []
    for name, entry in index.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            continue
        places = [index.storage_data.get(MetadataIndex(name, chunk.offsets)) for chunk in entry.chunks]
        written = [info for info in places if info and info.offset + info.length <= sizes.get(info.relative_path, 0)]
        covered = sum(chunk.sizes.numel() for chunk in entry.chunks)
        if len(written) < len(places) or covered != entry.size.numel():
            problems.append(name)
    if problems:
        raise RuntimeError(f"{len(problems)} tensors were not written whole: {', '.join(problems[:10])}.")


def read_into(tensors: Mapping[str, Tensor], path: Path, index: Metadata, *, collective: bool) -> None:
    """Fill `tensors`, each the whole or this rank's shard, in place from checkpoint `path`.

    Args:
        tensors: by name; all are in `index`, with the same shape.
        collective: every rank of the default group calls this at the same time.
    """
    flat = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with one_process_is_meant():
        load(dict(tensors), storage_reader=_Reader(path, index), planner=flat, no_dist=alone() or not collective)


@contextmanager
def one_process_is_meant() -> Iterator[None]:
    """Leave out torch's warning that a load or a save without a process group is one of a single process: it is."""
    if not alone():
        yield  # Filters are the process's: they are not to change under a thread that runs beside this one.
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield


class _IndexUnpickler(pickle.Unpickler):
    """Deriving is the way the standard library offers to restrict what a pickle may name."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        is_dtype = module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype)
        if is_dtype or global_name in _INDEX_TYPES.get(module_name, ()):
            return super().find_class(module_name, global_name)
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which has no place in an index")


class _Reader(FileSystemReader):
    """torch's reader with an index that is read already: its own way would unpickle anything, on every call."""

    def __init__(self, path: Path, index: Metadata) -> None:
        super().__init__(Path())  # torch's own files know local paths only.
        self.fs, self.path, self._index = Files(), path, index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._index
