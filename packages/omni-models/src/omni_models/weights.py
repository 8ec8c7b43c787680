"""Filling a model with weights: random ones, or those of a Hugging Face directory. Effect: reads files.

Parameters may be plain tensors or DTensors; each rank fills its own share and the numbers never depend on how the
parameters are shared out.

Private names used here, with the reason: `PreTrainedModel._init_weights` is where transformers keeps each model's own
initialisation; `_is_hf_initialized` and `guard_torch_init_functions` are how it is told to leave a tensor alone;
`WeightRenaming` and `_keys_to_ignore_on_load_unexpected` are how it tells the old names in checkpoints;
`compute_local_shape_and_global_offset` is torch's own arithmetic of shards. `tests/test_weights.py` fails if one moves.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.initialization import guard_torch_init_functions

from omni_models.facts import block_names

Shape = tuple[int, ...]
M = TypeVar("M", bound=PreTrainedModel)


@torch.no_grad()
def fill_weights(model: M, source: str | Path | None, *, seed: int = 0) -> M:
    """The same model with every parameter and buffer set. Donates `model`.

    Random weights follow the model's own initialisation; each block draws from a seed of its own, so they are the same
    on every mesh. Weights of a directory are read slice by slice: a rank reads only what it holds, cast to the
    parameter's dtype.

    Args:
        model: sharded or not; on "meta" it is given memory first, on the device of its mesh (the CPU if it has none).
        source: None for random weights; a directory of safetensors files; or a hub name, which is downloaded.
        seed: of the random weights.

    Raises:
        ValueError: if weights are missing, left over or of another shape (all of them listed), or if the model's own
            initialisation leaves something unset.
    """
    if any(param.is_meta for param in model.parameters()):
        model.to_empty(device=_home(model))
        model.tie_weights()
    for buffer in model.buffers():
        _poison_(buffer)
    if source is None:
        _fill_random_(model, seed)
    else:
        with _untouched(model):
            _init_subtree(model, model._init_weights)
        _fill_from_files_(model, source)
    if unset := [name for name, buffer in model.named_buffers() if _is_poison(buffer)]:
        raise ValueError(f"transformers' initialisation of {model.config.model_type} leaves buffers unset: {unset}.")
    return model


def plan_reads(
    wanted: Mapping[str, Shape],
    stored: Mapping[str, Shape],
    *,
    optional: frozenset[str] = frozenset(),
    prefix: str = "",
) -> dict[str, str]:
    """Which stored tensor fills which wanted one. Pure.

    A directory saved from a bare decoder lacks the `prefix` (such as "model.") in its names; that is understood.

    Args:
        wanted: shape by name of the model.
        stored: shape by name in the files.
        optional: stored names that may be left over, such as the second name of a tied weight.
        prefix: what the files may omit.

    Raises:
        ValueError: listing what is missing, left over and of another shape.
    """
    bare = prefix and not any(name.startswith(prefix) for name in stored)
    reads = {name: name.removeprefix(prefix) if bare and name not in stored else name for name in wanted}
    missing = [name for name, key in reads.items() if key not in stored]
    extra = [key for key in stored if key not in reads.values() and key not in optional]
    shapes = [
        f"{name}: stored {list(stored[key])}, wanted {list(wanted[name])}"
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


def plan_weights(model: PreTrainedModel, source: str | Path) -> dict[str, tuple[Path, str]]:
    """The file and the name in it of every tensor of `model`, which may be on meta. Effect: reads headers, downloads.

    Args:
        model: what is to be filled; it is not changed.
        source: a directory of safetensors files, or a hub name.

    Raises:
        ValueError: if there is no such source, or if its tensors are not those of this model (all of them listed).
    """
    directory = Path(source) if Path(source).is_dir() else _download(str(source))
    renames = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    stored, keys = {}, {}
    for key, found in stored_tensors(directory).items():
        name = key
        for rule in renames:
            name, _ = rule.rename_source_key(name)
        if not any(re.search(pattern, key) for pattern in model._keys_to_ignore_on_load_unexpected or ()):
            stored[name], keys[name] = found, key
    try:
        reads = plan_reads(
            {name: tuple(tensor.shape) for name, tensor in _loadable(model).items()},
            {name: shape for name, (_, shape) in stored.items()},
            optional=frozenset(model.all_tied_weights_keys) | frozenset(model.all_tied_weights_keys.values()),
            prefix=f"{model.base_model_prefix}.",
        )
    except ValueError as problem:
        note = "\nIts checkpoints go by other names, which are not read yet." if _renamed(model) else ""
        raise ValueError(f"{directory}: {problem}{note}") from None
    return {name: (stored[key][0], keys[key]) for name, key in reads.items()}


def stored_tensors(directory: Path) -> dict[str, tuple[Path, Shape]]:
    """The file and shape of each tensor in the safetensors files of `directory`. Effect: reads headers only.

    Raises:
        ValueError: if there are none, or if the index names a file that is not there.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = sorted(path.name for path in directory.glob("*.safetensors"))
    if not names:
        raise ValueError(f"{directory} holds no .safetensors file; save the weights as safetensors first.")
    if absent := [name for name in names if not (directory / name).is_file()]:
        raise ValueError(f"{index} names files that are not there: {', '.join(absent)}.")
    stored = {}
    for name in names:
        with safe_open(directory / name, framework="pt") as file:
            stored |= {key: (directory / name, tuple(file.get_slice(key).get_shape())) for key in file.keys()}  # noqa: SIM118
    return stored


def _fill_random_(model: PreTrainedModel, seed: int) -> None:
    """Set each block, and what is around them, by the model's own initialisation of whole tensors."""
    blocks = block_names(model)
    inside = {id(module) for name in blocks for module in model.get_submodule(name).modules()}
    for name in ("", *blocks):
        unit = model.get_submodule(name)
        skip = set() if name else inside
        # One tensor may have two names (tied weights): it is made once and put back once.
        owners = [(m, key, p) for m in unit.modules() if id(m) not in skip for key, p in m._parameters.items()]
        whole = {id(p): torch.empty(p.shape, dtype=p.dtype, device=p.device) for *_, p in owners if p is not None}
        for owner, key, param in owners:
            if param is not None:
                owner._parameters[key] = nn.Parameter(whole[id(param)], requires_grad=param.requires_grad)
        for tensor in whole.values():
            _poison_(tensor)
        with _seeded(seed, name, model.device):
            _init_subtree(unit, _init_of(model, name), skip)
        for owner, key, param in owners:
            if param is not None:
                if _is_poison(whole[id(param)]):
                    raise ValueError(f"transformers leaves {key} of {type(owner).__name__} in {name or 'root'} unset.")
                owner._parameters[key] = param
                _local(param).copy_(_share(whole[id(param)], param))


def _fill_from_files_(model: PreTrainedModel, source: str | Path) -> None:
    """Set parameters and persistent buffers from files, each rank its own slices."""
    by_file: dict[Path, list[tuple[str, str]]] = {}
    for name, (path, key) in plan_weights(model, source).items():
        by_file.setdefault(path, []).append((name, key))
    tensors = _loadable(model)
    for path, names in by_file.items():
        with safe_open(path, framework="pt") as file:
            for name, key in names:
                local = _local(tensors[name])
                if local.numel():
                    local.copy_(file.get_slice(key)[_own_slices(tensors[name])])


def _loadable(model: nn.Module) -> dict[str, Tensor]:
    """What a file holds of a model: parameters, each once, and persistent buffers."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    known = {id(param) for param in tensors.values()}
    return tensors | {name: t for name, t in model.state_dict(keep_vars=True).items() if id(t) not in known}


def _renamed(model: PreTrainedModel) -> bool:
    """Whether transformers converts this model's checkpoints by more than the renames it applies to every model."""
    return any(hasattr(rule, "operations") for rule in get_model_conversion_mapping(model))


def _download(name: str) -> Path:
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(f"there is no directory {name!r}, and a hub name has the form owner/name.")
    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json"]))
    except OSError as problem:
        raise ValueError(f"the hub gave no weights for {name!r}: is the name right and the network up?") from problem


def _init_of(model: PreTrainedModel, name: str) -> Callable[[nn.Module], None]:
    """The initialisation that transformers would use at `name`: that of the innermost model around it."""
    parts = name.split(".") if name else []
    around = [model.get_submodule(".".join(parts[:n])) for n in range(len(parts) + 1)]
    return next(m._init_weights for m in reversed(around) if isinstance(m, PreTrainedModel))


def _init_subtree(module: nn.Module, init: Callable[[nn.Module], None], skip: set[int] = frozenset()) -> None:  # pyright: ignore[reportArgumentType]
    """Initialise children first, then the module, each by the innermost model's own function, as transformers does."""
    for child in module.children():
        if id(child) not in skip:
            _init_subtree(child, child._init_weights if isinstance(child, PreTrainedModel) else init, skip)
    init(module)


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


@contextmanager
def _seeded(seed: int, name: str, device: torch.device) -> Iterator[None]:
    """While open, torch draws from a stream that belongs to `seed` and `name`; afterwards from where it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big"))
        yield


def _home(model: nn.Module) -> torch.device:
    """Where the parameters of `model` belong: this rank's device of their mesh, or the CPU."""
    kinds = {param.device_mesh.device_type for param in model.parameters() if isinstance(param, DTensor)}
    kind = next(iter(kinds), "cpu")
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _share(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of `whole`, cut as `like` is. No communication."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()


def _own_slices(tensor: Tensor) -> tuple[slice, ...]:
    """Where this rank's part lies in the whole tensor."""
    if not isinstance(tensor, DTensor):
        return (slice(None),) * tensor.ndim
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


def _poison_(tensor: Tensor) -> None:
    """Fill with what no initialisation writes, so that what is left unset shows."""
    if tensor.is_floating_point():
        tensor.fill_(torch.nan)
    elif tensor.dtype != torch.bool:
        tensor.fill_(torch.iinfo(tensor.dtype).min)


def _is_poison(tensor: Tensor) -> bool:
    if tensor.is_floating_point():
        return bool(tensor.isnan().any())
    return tensor.dtype != torch.bool and bool((tensor == torch.iinfo(tensor.dtype).min).any())
