"""What holds the memory of a GPU at its peak, and where in the program that was allocated."""

import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

_TORCH: Final = str(Path(torch.__file__).parent)
UNSEEN: Final = "no line of Python: the backward pass"
BEFORE: Final = "was there before: parameters, moments"


class Live(NamedTuple):
    """Memory that is held at one moment, by where it was allocated."""

    size: int
    """Bytes."""
    number: int
    """Of allocations."""
    place: str


@contextmanager
def allocations_noted() -> Iterator[None]:
    """While open, torch notes each allocation on a GPU, and the lines of Python that it comes from. Effect: so."""
    # Torch has no public name for this, and for `_dump_snapshot` below: its guide to GPU memory documents both, and
    # https://pytorch.org/memory_viz reads what they write. tests/test_allocations.py tells when they move.
    torch.cuda.memory._record_memory_history(stacks="python")
    try:
        yield
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)


def save_allocations(path: Path, device: torch.device) -> list[Live]:
    """What is live at the peak since allocations are noted, largest first. Effect: writes all of them to `path`."""
    torch.cuda.memory._dump_snapshot(str(path))
    snapshot = pickle.loads(path.read_bytes())
    index = torch.cuda.current_device() if device.index is None else device.index
    held = {
        block["address"]: block["requested_size"]
        for segment in snapshot["segments"]
        if segment["device"] == index
        for block in _with_addresses(segment)
        if block["state"] == "active_allocated"
    }
    return find_peak(snapshot["device_traces"][index], held)


def find_peak(trace: Sequence[Mapping[str, Any]], held: Mapping[int, int]) -> list[Live]:
    """What was live when most was, by where it was allocated, largest first. Pure.

    Args:
        trace: what the allocator did, in order: `action`, `addr`, `size` in bytes, `frames`.
        held: bytes by address of what is live after it.
    """
    moves = [event for event in trace if event["action"] in ("alloc", "free_requested")]
    peak, most, now = 0, 0, 0
    for at, event in enumerate(moves, start=1):
        now += event["size"] if event["action"] == "alloc" else -event["size"]
        if now > most:
            peak, most = at, now
    live = _replay(moves[:peak])
    after = _replay(moves)
    # What was there before is freed without having been allocated, or is live to the end.
    allocated, before = set[int](), [size for addr, size in held.items() if addr not in after]
    for at, event in enumerate(moves):
        if event["action"] == "alloc":
            allocated.add(event["addr"])
        elif event["addr"] not in allocated and at >= peak:
            before.append(event["size"])
    sizes, counts = Counter[str](), Counter[str]()
    for event in live.values():
        place = find_place(event["frames"])
        sizes[place] += event["size"]
        counts[place] += 1
    there = [Live(sum(before), len(before), BEFORE)] if before else []
    return sorted([*there, *(Live(size, counts[place], place) for place, size in sizes.items())], reverse=True)


def find_place(frames: Sequence[Mapping[str, Any]]) -> str:
    """The innermost of `frames` that is not torch's, as file:line and function. Pure."""
    named = [frame for frame in frames if frame["filename"].endswith(".py")]
    outside = [frame for frame in named if not frame["filename"].startswith(_TORCH)]
    if not named:
        return UNSEEN
    frame = (outside or named)[0]
    return f"{'/'.join(Path(frame['filename']).parts[-2:])}:{frame['line']} {frame['name']}"


def tell_peak(live: Sequence[Live], most: int = 15) -> str:
    """The largest of `live` in words, a line each. Pure."""
    lines = [f"  {one.size / 1e9:8.3f} GB  {one.number:6} x  {one.place}" for one in live[:most]]
    return "\n".join([f"at the peak {sum(one.size for one in live) / 1e9:.3f} GB were allocated:", *lines])


def _replay(moves: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """The allocations of `moves` that nothing in them frees, by address."""
    live: dict[int, Mapping[str, Any]] = {}
    for event in moves:
        if event["action"] == "alloc":
            live[event["addr"]] = event
        else:
            live.pop(event["addr"], None)
    return live


def _with_addresses(segment: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The blocks of `segment`, which lie one after another."""
    at = segment["address"]
    for block in segment["blocks"]:
        yield {**block, "address": at}
        at += block["size"]
