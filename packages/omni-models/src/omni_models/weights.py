"""Filling a model with weights: random ones, or those of a Hugging Face directory. Effect: reads files.

Parameters may be plain tensors or DTensors; each rank fills its own share and the numbers never depend on how the
parameters are shared out. Of the experts that a directory names one by one, a rank reads those it holds.

Private names used here, with the reason: `_is_hf_initialized` and `guard_torch_init_functions` are how transformers is
told to leave a tensor alone; `_keys_to_ignore_on_load_unexpected` is how it tells old names in checkpoints.
`tests/test_weights.py` fails if one moves.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.initialization import guard_torch_init_functions

from omni_models.adapters import fill_adapters_
from omni_models.classes import without_adapters
from omni_models.initial import fill_random_, init_subtree_, is_poison, poison_
from omni_models.layout import Piece, Shape, canonical, find_overlap, find_pieces
from omni_models.shares import local, own_slices

M = TypeVar("M", bound=PreTrainedModel)

_TRAINABLE = ("F64", "F32", "F16", "BF16")
"""How safetensors files call the dtypes that a floating-point parameter is read from."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file, which is not read yet."""

    path: Path
    key: str
    """Its name in the file."""
    shape: Shape
    dtype: str
    """As safetensors calls it: F32, BF16, ..."""


@torch.no_grad()
def fill_weights(model: M, source: str | Path | None, *, seed: int = 0, device: torch.device | str = "cpu") -> M:
    """The same model with every parameter and buffer set. Donates `model`.

    Random weights follow the model's own initialisation; each block draws from a seed of its own, so they are the same
    on every mesh. Weights of a directory are read slice by slice: a rank reads only what it holds, cast to the
    parameter's dtype. Adapters (`add_lora`) start anew, and what is around them is filled as if there were none.

    Args:
        model: sharded or not; on "meta" it is given memory first, on the device of its mesh, or on `device`.
        source: None for random weights; a directory of safetensors files; or a hub name, which is downloaded.
        seed: of the random weights, and of adapters.
        device: of a model that has no mesh, as that of a rank alone has none.

    Raises:
        ValueError: if weights are missing, left over, quantised or of another shape (all of them listed), or if the
            model's own initialisation leaves something unset.
    """
    if any(param.is_meta for param in model.parameters()):
        model.to_empty(device=_home(model, device))
        without_adapters(model).tie_weights()
    for buffer in model.buffers():
        poison_(buffer)
    base = without_adapters(model)
    if source is None:
        fill_random_(base, seed)
    else:
        with _untouched(base):
            init_subtree_(base, base._init_weights)
        _fill_from_files_(base, source)
    fill_adapters_(model, seed)
    if unset := [name for name, buffer in model.named_buffers() if is_poison(buffer)]:
        raise ValueError(f"transformers' initialisation of {model.config.model_type} leaves buffers unset: {unset}.")
    return model


def plan_reads(
    wanted: Mapping[str, Shape],
    stored: Mapping[str, Shape],
    *,
    optional: frozenset[str] = frozenset(),
    prefix: str = "",
    shown: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Which stored tensor fills which wanted one. Pure.

    A directory saved from a bare decoder lacks the `prefix` (such as "model.") in its names; that is understood.

    Args:
        wanted: shape by name of the model.
        stored: shape by name in the files.
        optional: stored names that may be left over, such as the second name of a tied weight.
        prefix: what the files may omit.
        shown: what to call a tensor in an error, where that is not its name here.

    Raises:
        ValueError: listing what is missing, left over and of another shape.
    """
    bare = prefix and not any(name.startswith(prefix) for name in stored)
    reads = {name: name.removeprefix(prefix) if bare and name not in stored else name for name in wanted}
    missing = [shown.get(name, name) for name, key in reads.items() if key not in stored]
    wanted_keys = frozenset(reads.values())
    extra = [shown.get(key, key) for key in stored if key not in wanted_keys and key not in optional]
    shapes = [
        f"{shown.get(key, key)}: stored {list(stored[key])}, wanted {list(wanted[name])}"
        for name, key in reads.items()
        if key in stored and tuple(stored[key]) != tuple(wanted[name])
    ]
    listed = [
        f"{len(names)} {what}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        for what, names in (("missing", missing), ("left over", extra), ("of another shape", shapes))
        if names
    ]
    if listed:
        raise ValueError("these weights are not those of this model:\n" + "\n".join(f"  - {line}" for line in listed))
    return reads


def plan_weights(model: PreTrainedModel, source: str | Path) -> dict[str, tuple[tuple[Piece, Stored], ...]]:
    """Which tensors in which files make up each tensor of `model`. Effect: reads headers, downloads.

    Args:
        model: what is to be filled, also on meta; it is not changed.
        source: a directory of safetensors files, or a hub name.

    Raises:
        ValueError: if there is no such source, or if its tensors are not those of this model (all of them listed).
    """
    model = without_adapters(model)
    directory = Path(source) if Path(source).is_dir() else _download(str(source))
    name_of, prefix = canonical(model), f"{model.base_model_prefix}."
    wanted = {name: tuple(tensor.shape) for name, tensor in loadable(model).items()}
    stored: dict[str, Stored] = {}
    for key, found in stored_tensors(directory).items():
        if (name := name_of(key)) in stored:
            raise ValueError(f"{directory}: {key} and {stored[name].key} are two names of one tensor: leave one out.")
        stored[name] = found
    shapes = {name: found.shape for name, found in stored.items()}
    pieces = find_pieces(model, wanted, stored=shapes | {f"{prefix}{name}": shape for name, shape in shapes.items()})
    needed = {name_of(piece.name): piece.shape for parts in pieces.values() for piece in parts}
    ignored = model._keys_to_ignore_on_load_unexpected or ()
    shapes = {
        name: shape
        for name, shape in shapes.items()
        if name in needed or not any(re.search(pattern, stored[name].key) for pattern in ignored)
    }
    # Said first, since their scales are names that nobody asked for.
    _refuse_quantised(directory, [found for found in stored.values() if found.dtype.startswith(("F8", "F6", "F4"))])
    tied = model.all_tied_weights_keys
    try:
        reads = plan_reads(
            needed,
            shapes,
            optional=frozenset(tied) | frozenset(tied.values()),
            prefix=prefix,
            # A person looks for them by the names of files, as they are or as they would be.
            shown={name_of(piece.name): piece.name for parts in pieces.values() for piece in parts}
            | {name: found.key for name, found in stored.items()},
        )
    except ValueError as problem:
        raise ValueError(f"{directory}: {problem}") from None
    plan = {
        name: tuple((piece, stored[reads[name_of(piece.name)]]) for piece in parts) for name, parts in pieces.items()
    }
    floating = {name for name, tensor in loadable(model).items() if tensor.is_floating_point()}
    _refuse_quantised(
        directory,
        [
            found
            for name, parts in plan.items()
            for _, found in parts
            if name in floating and found.dtype not in _TRAINABLE
        ],
    )
    return plan


def _refuse_quantised(directory: Path, found: Sequence[Stored]) -> None:
    if found:
        names = ", ".join(f"{each.key} ({each.dtype})" for each in found[:8])
        raise ValueError(
            f"{directory}: {len(found)} weights are quantised, and training starts from weights that are not: "
            f"{names}{', ...' if len(found) > 8 else ''}. Choose the model's unquantised weights, or dequantise these."
        )


def stored_tensors(directory: Path) -> dict[str, Stored]:
    """The tensors in the safetensors files of `directory`, by name. Effect: reads headers only.

    Raises:
        ValueError: if there are none, if one is damaged, or if the index is, or names a file that is not there.
    """
    index = directory / "model.safetensors.index.json"
    names = _indexed(index) if index.is_file() else sorted(path.name for path in directory.glob("*.safetensors"))
    if not names:
        raise ValueError(f"{directory} holds no .safetensors file; save the weights as safetensors first.")
    if absent := [name for name in names if not (directory / name).is_file()]:
        raise ValueError(f"{index} names files that are not there: {', '.join(absent)}.")
    stored = {}
    for path in (directory / name for name in names):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    header = file.get_slice(key)
                    stored[key] = Stored(path, key, tuple(header.get_shape()), header.get_dtype())
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}.") from error
    return stored


def _indexed(index: Path) -> list[str]:
    """The files that `index` names; all are in its directory."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name or name == ".."]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged: {error!r}.") from error
    if outside:
        raise ValueError(f"{index} names files outside of its directory: {', '.join(outside[:10])}.")
    return names


def loadable(model: nn.Module) -> dict[str, Tensor]:
    """What a file holds of a model: parameters, each once, and persistent buffers."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    known = {id(param) for param in tensors.values()}
    return tensors | {name: t for name, t in model.state_dict(keep_vars=True).items() if id(t) not in known}


def _fill_from_files_(model: PreTrainedModel, source: str | Path) -> None:
    """Set parameters and persistent buffers from files, each rank its own slices."""
    tensors = loadable(model)
    by_file: dict[Path, list[tuple[Piece, str]]] = {}
    for parts in plan_weights(model, source).values():
        for piece, found in parts:
            by_file.setdefault(found.path, []).append((piece, found.key))
    for path, reads in by_file.items():
        with safe_open(path, framework="pt") as file:
            for piece, key in reads:
                tensor = tensors[piece.param]
                if overlap := find_overlap(piece, tuple(tensor.shape), own_slices(tensor)):
                    target = local(tensor)[overlap.target].permute(overlap.order)
                    target.copy_(file.get_slice(key)[overlap.source].reshape(target.shape))


def _download(name: str) -> Path:
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(f"there is no directory {name!r}, and a hub name has the form owner/name.")
    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json"]))
    except OSError as problem:
        raise ValueError(f"the hub gave no weights for {name!r}: is the name right and the network up?") from problem


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """While open, initialisation leaves parameters as they are: only buffers are computed."""
    for param in model.parameters():
        param._is_hf_initialized = True  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with guard_torch_init_functions():
            yield
    finally:
        for param in model.parameters():
            del param._is_hf_initialized  # pyright: ignore[reportAttributeAccessIssue]


def _home(model: nn.Module, device: torch.device | str) -> torch.device:
    """Where the parameters of `model` belong: this rank's device of their mesh; `device` if they have none."""
    kinds = {param.device_mesh.device_type for param in model.parameters() if isinstance(param, DTensor)}
    if not kinds:
        return torch.device(device)
    kind = kinds.pop()
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
