"""`--profile`: some steps of a run, as a trace and a record of memory, and the most of both in words. The first rank
alone is profiled; the numbers of the run stay what they are."""

import gzip
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from allocations import allocations_noted, save_allocations, tell_peak
from request import Config
from timeline import read_timeline, tell_timeline
from torch.profiler import profile
from watch import say
from watching import profiled, watch_steps

from omni_mesh import World

T = TypeVar("T")


@contextmanager
def profiling(config: Config, world: World, *, at: int) -> Iterator[Callable[[Iterator[T]], Iterator[T]]]:
    """A function of what each step takes, which gives the same, and profiles those that `config` asks for.

    Effect: writes below `profile/` of the run and prints, on the first rank.

    Args:
        config: of the run.
        world: of its ranks.
        at: the step that it stands at.
    """
    if not config.profile or world.rank:
        yield iter
        return
    steps = range(max(config.profile[0], at + 1), config.profile[-1] + 1)
    kept: list[Path] = []
    if not steps:
        say(f"Nothing is profiled: the run stands at step {at}, past --profile.")
    look = partial(keep_profile, config.out / "profile", steps, world.device, kept)
    with watch_steps(steps, look, at=at) as watched:
        yield watched
    if steps and not kept:
        say(f"Nothing was profiled: the run ended before step {steps.start}.")


@contextmanager
def keep_profile(folder: Path, steps: range, device: torch.device, kept: list[Path]) -> Iterator[None]:
    """While open, profile. Effect: writes the trace to `folder`, and what a GPU allocated; prints the most of both, and
    adds the trace to `kept`, unless the data ended before the first of `steps`."""
    name = f"step-{steps.start}" if len(steps) == 1 else f"steps-{steps.start}-{steps.stop - 1}"
    trace, allocations = folder / f"{name}.trace.json.gz", folder / f"{name}.memory.pickle"
    on_gpu = device.type == "cuda"
    folder.mkdir(parents=True, exist_ok=True)
    with allocations_noted() if on_gpu else nullcontext():
        with profiled(device, memory=not on_gpu) as profiler:
            yield
        memory = tell_peak(save_allocations(allocations, device)) if on_gpu else tell_operators(profiler)
    if (timeline := read_timeline(profiler)).steps:
        save_trace(profiler, trace)
        kept.append(trace)
        say(tell_timeline(timeline, most=15), memory, f"The profile is in {folder}.")


def save_trace(profiler: profile, path: Path) -> None:
    """Effect: writes what https://ui.perfetto.dev opens to `path`, compressed; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        whole = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(whole))
        path.write_bytes(gzip.compress(whole.read_bytes(), mtime=0))


def tell_operators(profiler: profile, most: int = 15) -> str:
    """The operators of a CPU that allocated most, in words, a line each; what they freed themselves does not count."""
    sizes = Counter[str]()
    events: list[Any] = list(profiler.events() or ())
    for event in events:
        sizes[event.name] += max(0, event.self_cpu_memory_usage)
    lines = [f"  {size / 1e9:8.3f} GB  {name}" for name, size in sizes.most_common(most)]
    return "\n".join([f"operators allocated {sizes.total() / 1e9:.3f} GB, one after another:", *lines])
