"""Adapters out of a checkpoint: by themselves, as plain peft reads them, or taken up into the weights that they were
trained beside. Effect: reads and writes, in one process."""

import json
import shutil
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from omni_ckpt import load_dcp, mismatches, stored
from omni_models import build_model, fill_weights, merge_adapters, peft_keys, read_adapters, read_config

ADAPTERS: Final = "adapter_config.json"
"""How plain peft calls what describes adapters."""


def export_adapters(source: Path, assets: Path, to: Path, dtype: torch.dtype | None) -> str:
    """The name of the weights that the adapters of checkpoint `source`, now in `to`, were trained beside.

    Effect: reads the checkpoint; writes adapters and tokenizer. What describes them, without which nothing loads the
    directory, comes last and whole.

    Raises:
        ValueError: if the checkpoint is damaged, or of something else.
    """
    model = read_adapters(build_model(read_config(str(assets)), device="meta"), assets)
    found = peft_keys(model)(read_trained(model, source))
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in found.items()}
    to.mkdir(exist_ok=True)
    save_file(tensors, to / "adapter_model.safetensors", {"format": "pt"})
    others = ("config.json", "generation_config.json", ADAPTERS)
    for file in (file for file in assets.iterdir() if file.name not in others):
        shutil.copy(file, to)
    shutil.copy(assets / ADAPTERS, part := to / f"{ADAPTERS}.tmp")
    part.rename(to / ADAPTERS)
    return base_of(assets)


def merge_base(source: Path, assets: Path, to: Path, dtype: torch.dtype | None, *, base: str | None = None) -> None:
    """Write the weights that the adapters of checkpoint `source` were trained beside, with these taken up, into `to`.

    Effect: reads them all into memory, in float32; writes weights, and no configuration.

    Args:
        source: a checkpoint.
        assets: what describes the model and its adapters.
        to: is not there, or empty.
        dtype: of the weights written; None for float32.
        base: where those weights are, if not where they were read from.

    Raises:
        ValueError: if there are no such weights, or the checkpoint is damaged, or of something else.
    """
    model = read_adapters(build_model(read_config(str(assets)), device="meta"), assets)
    model = fill_weights(model, base or base_of(assets))
    read_trained(model, source)
    model = merge_adapters(model)
    if dtype is not None:
        model = model.to(dtype)  # pyright: ignore[reportArgumentType] It takes what modules take.
    part = to.with_name(f"{to.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    (part / "config.json").unlink()
    if to.is_dir():
        to.rmdir()
    part.rename(to)


def base_of(assets: Path) -> str:
    """Where the weights are that adapters were trained beside. Effect: reads a file."""
    return json.loads((assets / ADAPTERS).read_text())["base_model_name_or_path"]


def read_trained(model: PreTrainedModel, source: Path) -> dict[str, Tensor]:
    """What checkpoint `source` has of `model`, by name: in the memory of its parameters, if they have some.

    Effect: reads.

    Raises:
        ValueError: if it is damaged, or of something else.
    """
    trained = {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}
    here = {name: torch.empty_like(x, device="cpu") if x.is_meta else x for name, x in trained.items()}
    if problems := mismatches(here, stored(source, prefix="state.model")):
        raise ValueError(f"{source} does not hold the adapters of its run:\n" + "\n".join(problems))
    load_dcp({"state": {"model": here}}, source, strict=False)
    return here
