"""What a checkpoint costs: how long training waits for one that is written by the step, and in the background.

    uv run benchmarks/save.py --model qwen3-8b --to /disk/folder --name qwen3-8b-1x

The state is that of AdamW, parameters and moments in `--dtype`. Beside the saves, the limits of the machine are
measured: writing to the disk, and copying from the GPU to pinned memory. While a checkpoint is written in the
background, a stand-in for training goes on, whose steps are told before and during it.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent / "apps"))

from records import ask

from omni_ckpt import begin_save_dcp, load_dcp, make_group, make_staging, save_dcp
from omni_mesh import MeshConfig, join_world, make_mesh, resolve_mesh
from omni_models import build_model, describe, fill_weights, read_config
from omni_parallel import AdamWConfig, init_state, plan_parallel, shard_fsdp, state_tree

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Config:
    """What to save, and where to."""

    to: Path
    """A folder on the disk to measure; it needs room for one checkpoint, which is deleted."""
    name: str
    """Of the record: benchmarks/save/NAME.json."""
    model: str = "tiny"
    """A preset, a directory or a hub name."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of parameters and moments."""
    records: Path = HERE / "save"
    """Folder to write the record to."""
    commit: str | None = None
    """Of the code measured. Left out: asked of git."""


def main(config: Config) -> None:
    """Measure, write the record and print it. Effect: writes and deletes files."""
    with join_world() as world:
        spec = resolve_mesh(MeshConfig(), world.size)
        model = build_model(read_config(config.model), device="meta").to(getattr(torch, config.dtype))
        plan = plan_parallel(describe(model), spec)
        model = shard_fsdp(model, make_mesh(spec, device_type=world.device.type), plan)
        tree = state_tree(init_state(fill_weights(model, None, device=world.device), AdamWConfig()))
        record = measure(tree, config.to, world.device) | {
            "model": config.model,
            "dtype": config.dtype,
            "date": date.today().isoformat(),
            "commit": config.commit or ask("git", "rev-parse", "HEAD"),
            "gpu": torch.cuda.get_device_name() if world.device.type == "cuda" else "",
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }
    config.records.mkdir(exist_ok=True)
    text = json.dumps(record, indent=2) + "\n"
    (config.records / f"{config.name}.json").write_text(text)
    print(text, end="")


def measure(tree: dict[str, Any], to: Path, device: torch.device) -> dict[str, Any]:
    """Seconds and 10^9 bytes a second of each way. Effect: writes and deletes files."""
    found: dict[str, Any] = {"disk_gb_per_second": 4.0 / timed(lambda: write_raw(to / "raw", 4))[0]}
    (to / "raw").unlink()
    if device.type == "cuda":
        found["host_copy_gb_per_second"] = copy_speed(device)
    group = make_group()
    found["sync_seconds"], path = timed(lambda: save_dcp(tree, to / "sync", group=group))
    shutil.rmtree(path)
    print(found, flush=True)
    found["staging_seconds"], staging = timed(lambda: make_staging(tree))
    found["gb"] = size = staging.nbytes / 1e9
    found["sync_gb_per_second"] = size / found["sync_seconds"]
    before = [seconds for seconds, _ in zip(steps(device), range(20), strict=False)]
    began = time.perf_counter()
    found["stall_seconds"], saving = timed(
        lambda: begin_save_dcp(tree, to / "background", staging=staging, group=group), device
    )
    during = []
    for seconds in steps(device):
        during.append(seconds)
        if saving.done:
            break
    path = saving()
    found["background_seconds"] = time.perf_counter() - began
    found["stall_gb_per_second"] = size / found["stall_seconds"]
    found["stall_of_sync"] = found["stall_seconds"] / found["sync_seconds"]
    found["step_seconds_before"], found["step_seconds_during"] = median(before), median(during)
    print(found, flush=True)
    found["load_seconds"], _ = timed(lambda: load_dcp(tree, path))
    shutil.rmtree(path)
    return {name: round(value, 4) for name, value in found.items()}


def timed(act: Callable[[], Any], device: torch.device | None = None) -> tuple[float, Any]:
    """Seconds that `act()` takes, and what it returns."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = act()
    return time.perf_counter() - began, result


def steps(device: torch.device) -> Iterator[float]:
    """Seconds of each of a row of steps, which are many small operations, as those of a training step."""
    x = torch.randn(2048, 2048, device=device, dtype=torch.bfloat16)
    while True:
        began = time.perf_counter()
        for _ in range(500 if device.type == "cuda" else 2):
            x = (x @ x).tanh()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        yield time.perf_counter() - began


def copy_speed(device: torch.device) -> float:
    """10^9 bytes a second from the GPU to pinned memory."""
    source = torch.empty(4 << 30, dtype=torch.uint8, device=device)
    target = torch.empty(4 << 30, dtype=torch.uint8, pin_memory=True)
    target.copy_(source)
    return source.nbytes / 1e9 / timed(lambda: target.copy_(source), device)[0]


def write_raw(file: Path, gigabytes: int) -> None:
    """Write so many 10^9 bytes, until they are on the device."""
    piece = os.urandom(10**8)
    with file.open("wb", buffering=0) as stream:
        for _ in range(gigabytes * 10):
            stream.write(piece)
        os.fsync(stream.fileno())


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
