"""What overlapping the all-to-all of sequence parallelism with attention gains, and a trace that shows it.

    uv run benchmarks/overlap.py --name overlap-2x-h200

One attention layer between two collectives, forward and backward, on every local GPU as a sequence rank: for each
length of a row and each number of chunks the milliseconds of one pass, and the share of the collectives' time during
which attention ran. The trace of the longest row in two chunks opens in https://ui.perfetto.dev.
"""

import gzip
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import tyro
from torch import nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent.parent / "apps"))

from records import ROOT, ask

from omni_mesh import MeshConfig, join_world, launch, make_mesh, resolve_mesh
from omni_models.attention import ATTENTIONS
from omni_parallel import ulysses

Step = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Config:
    """One measurement."""

    name: str
    """Of the files to write: NAME.json and NAME.trace.json.gz."""
    attention: str = "fa4"
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    lengths: tuple[int, ...] = (8192, 32768, 131072)
    """Tokens of a row, one row."""
    chunks: tuple[int, ...] = (1, 2, 4)
    repeats: int = 5
    to: Path = ROOT / "benchmarks" / "overlap"
    """Folder to write to."""
    commit: str | None = None
    """Of the code measured. Left out: asked of git."""


def main(config: Config) -> None:
    """Measure, and on the first rank write what was found. Effect: runs on GPUs, writes two files."""
    with join_world() as world:
        mesh = make_mesh(resolve_mesh(MeshConfig(shard=1, sp=world.size), world.size), device_type=world.device.type)
        group = mesh.tokens.get_group("sp")
        rows = []
        for length in config.lengths:
            for chunks in config.chunks:
                step = make_step(config, group, length, chunks, world.device)
                step()
                events = trace(step, None)
                times = [timed(step) for _ in range(config.repeats)]
                row = {"tokens": length, "chunks": chunks, "milliseconds": round(median(times), 3)}
                rows.append(row | {"overlapped": round(overlapped(events), 3)})
                if world.rank == 0:
                    print(rows[-1], flush=True)
        last = make_step(config, group, max(config.lengths), 2, world.device)
        last()
        if world.rank == 0:
            config.to.mkdir(parents=True, exist_ok=True)
        trace(last, config.to / f"{config.name}.trace.json.gz" if world.rank == 0 else None)
        if world.rank == 0:
            record = {
                "rows": rows,
                "shape": f"{config.heads} heads, {config.kv_heads} key heads of {config.head_dim}, {config.attention}",
                "command": f"uv run benchmarks/overlap.py --name {config.name}",
                "date": date.today().isoformat(),
                "commit": config.commit or ask("git", "rev-parse", "HEAD"),
                "gpu": f"{world.size} x {torch.cuda.get_device_name()}",
                "versions": {name: version(name) for name in ("torch", "triton")} | {"cuda": torch.version.cuda},
            }
            (config.to / f"{config.name}.json").write_text(json.dumps(record, indent=2) + "\n")


def make_step(config: Config, group: dist.ProcessGroup, length: int, chunks: int, device: torch.device) -> Step:
    """A function that runs attention over a row of `length` tokens forward and backward."""
    ranks = dist.get_world_size(group)
    attend = ulysses(group, chunks=chunks)(ATTENTIONS[config.attention])
    shapes = [(config.heads, True), (config.kv_heads, True), (config.kv_heads, True)]
    q, k, v = (
        torch.randn(1, length // ranks, n, config.head_dim, device=device, dtype=torch.bfloat16, requires_grad=grad)
        for n, grad in shapes
    )
    facts = {
        "whole_position_ids": torch.arange(length, device=device)[None],
        "cu_seqlens": torch.tensor([0, length], device=device, dtype=torch.int32),
        "max_seqlen": length,
    }
    layer, ones = nn.Module(), torch.ones_like(q)

    def step() -> None:
        out = attend(layer, *(x.transpose(1, 2) for x in (q, k, v)), None, **facts)[0]
        out.backward(ones)

    return step


def timed(step: Step) -> float:
    """Milliseconds of one call."""
    dist.barrier()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)


def trace(step: Step, to: Path | None) -> list[dict]:
    """The kernels of one call, by name and time; the whole trace is written to `to`."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        step()
        torch.cuda.synchronize()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        text = path.read_text()
    if to is not None:
        to.write_bytes(gzip.compress(text.encode(), mtime=0))
    return [event for event in json.loads(text)["traceEvents"] if event.get("cat") == "kernel"]


def overlapped(events: list[dict]) -> float:
    """The share of the time of collectives during which another kernel runs. Pure."""
    spans = [(e["ts"], e["ts"] + e["dur"], "nccl" in e["name"].lower()) for e in events]
    both = total = 0.0
    for start, stop, is_collective in spans:
        if is_collective:
            total += stop - start
            covered = sorted(
                (max(a, start), min(b, stop)) for a, b, other in spans if not other and a < stop and b > start
            )
            end = start
            for a, b in covered:
                both += max(0.0, b - max(a, end))
                end = max(end, b)
    return both / total if total else 0.0


if __name__ == "__main__":
    launch(main, tyro.cli(Config, description=__doc__), ranks=torch.cuda.device_count())
