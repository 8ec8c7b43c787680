"""From a training checkpoint to a directory of safetensors that Hugging Face loads. Planning is pure; one process.

The merge streams: the names are cut into files first, then the tensors of one file at a time are read, renamed, cast
and written. The directory gets its name last, so a merge that was killed leaves nothing that loads.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor

from omni_ckpt.disk import clear, publish, write_json
from omni_ckpt.layout import writing
from omni_ckpt.manifest import damages, read_manifest, refuse_damages
from omni_ckpt.places import as_place, sync
from omni_ckpt.storage import check_files, read_index, read_into, specs_in
from omni_ckpt.tree import TensorSpec, named

Tensors: TypeAlias = Mapping[str, Tensor]

INDEX_FILE = "model.safetensors.index.json"


def plan_shards(bytes_of: Mapping[str, int], max_bytes: int) -> dict[str, str]:
    """The file of each tensor: in order, each file filled up to `max_bytes`.

    >>> list(plan_shards({"a": 3, "b": 3, "c": 1}, 4).values())
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors', 'model-00002-of-00002.safetensors']

    Args:
        bytes_of: bytes of each tensor, by name.
        max_bytes: bytes of tensors in one file; a larger tensor has a file to itself.
    """
    if max_bytes < 1:
        raise ValueError(f"max_bytes={max_bytes}: a file holds at least one byte.")
    bins: list[list[str]] = []
    room = 0
    for name, size in bytes_of.items():
        if not bins or size > room:
            bins.append([])
            room = max_bytes
        bins[-1].append(name)
        room -= size
    return {name: _file(i, len(bins)) for i, names in enumerate(bins, 1) for name in names}


def merge_to_hf(
    source: Path,
    target: Path,
    *,
    prefix: str = "state.model",
    to_hf: Callable[[Tensors], Tensors] = dict,
    max_bytes: int = 5 << 30,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the tensors below `prefix` of checkpoint `source` as safetensors into the new directory `target`.

    Effect: reads and writes, in one process; needs no process group and uses none. In memory are the tensors of one
    file in the dtype they are stored in, and while they are read or cast, the largest of them once or twice more.

    Args:
        source: a directory of `save_dcp`, or of `torch.distributed.checkpoint` itself.
        target: must not exist, or be empty. Config and tokenizer are the caller's to add.
        prefix: the flat name that the names of the model are below.
        to_hf: from our names and tensors to Hugging Face's. It is called with the tensors of one file at a time, and
            on the meta device before anything is read.
        max_bytes: bytes of tensors in one file, about: `to_hf` could make more of them.
        dtype: of the floating-point tensors written; others, and all if None, keep theirs.

    Raises:
        ValueError: if `target` is not empty, nothing is below `prefix`, `source` is damaged, or `to_hf` needs tensors
            together that are in different files.
    """
    source, target = as_place(source), Path(target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} is not empty, and a model is never overwritten. Delete it or choose another one.")
    index = read_index(source)
    specs = _below(prefix, specs_in(index), source)
    check_files(source, index)
    refuse_damages(source, damages(source, read_manifest(source)))

    written = {name: _written_dtype(spec.dtype, dtype) for name, spec in specs.items()}
    plan = plan_shards({name: TensorSpec(s.shape, written[name]).nbytes for name, s in specs.items()}, max_bytes)
    groups = {file: [name for name in plan if plan[name] == file] for file in dict.fromkeys(plan.values())}
    _check_streams(specs, groups.values(), to_hf)

    temporary = writing(target)
    clear(temporary)
    temporary.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    total = 0
    for file, names in groups.items():
        loaded = {name: torch.empty(specs[name].shape, dtype=specs[name].dtype) for name in names}
        read_into(_with_prefix(prefix, loaded), source, index, collective=False)
        tensors = dict(to_hf(loaded))
        loaded.clear()
        for name in list(tensors):
            # Replaced one by one, so that the uncast tensors go as the cast ones come. None has another name here,
            # which would keep all that shares its memory until the next file is read.
            tensors[name] = _as_written(tensors[name], dtype)
        total += sum(tensor.nbytes for tensor in tensors.values())
        weight_map |= dict.fromkeys(tensors, file)
        _write(tensors, temporary / file)
        tensors.clear()  # Else it would live on while the next file is read.
    if len(groups) > 1:
        write_json({"metadata": {"total_size": total}, "weight_map": weight_map}, temporary / INDEX_FILE)
    publish(temporary, target)
    return target


def _write(tensors: Tensors, file: Path) -> None:
    save_file(dict(tensors), file, {"format": "pt"})
    # safetensors lets nobody else read its files; these are as readable as the directory.
    file.chmod(file.parent.stat().st_mode & 0o666)
    sync(file)


def _file(i: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{i:05d}-of-{count:05d}.safetensors"


def _below(prefix: str, specs: Mapping[str, TensorSpec], source: Path) -> dict[str, TensorSpec]:
    start = f"{prefix}." if prefix else ""
    found = {name.removeprefix(start): spec for name, spec in specs.items() if name.startswith(start)}
    if not found:
        depth = max(2, prefix.count(".") + 1)
        others = list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in specs))
        there = named("there are tensors below", others) or ["it has none at all"]
        raise ValueError(f"{source} has no tensors below {prefix!r}; {there[0]}.")
    return found


def _with_prefix(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    return {f"{prefix}.{name}" if prefix else name: tensor for name, tensor in tensors.items()}


def _written_dtype(stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted is not None and stored.is_floating_point else stored


def _as_written(tensor: Tensor, wanted: torch.dtype | None) -> Tensor:
    return tensor.to(_written_dtype(tensor.dtype, wanted)).contiguous()


def _check_streams(
    specs: Mapping[str, TensorSpec], groups: Iterable[Iterable[str]], to_hf: Callable[[Tensors], Tensors]
) -> None:
    """Refuse a `to_hf` that gives other tensors file by file than for the whole model: on the meta device, for free."""
    meta = {name: torch.empty(spec.shape, dtype=spec.dtype, device="meta") for name, spec in specs.items()}
    whole, parts = to_hf(meta), [to_hf({name: meta[name] for name in group}) for group in groups]
    outcomes = Counter((name, tensor.shape, tensor.dtype) for part in parts for name, tensor in part.items())
    outcomes.subtract((name, tensor.shape, tensor.dtype) for name, tensor in whole.items())
    if torn := list(dict.fromkeys(name for (name, *_), surplus in outcomes.items() if surplus)):
        raise ValueError(
            "to_hf needs tensors together that are in different files; allow larger files with max_bytes. "
            f"{named('file by file it gives otherwise', torn)[0]}."
        )
