"""Laws of what holds memory at its peak, against a replay of every moment."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from allocations import BEFORE, UNSEEN, Live, allocations_noted, find_peak, find_place, save_allocations, tell_peak
from hypothesis import given
from hypothesis import strategies as st

HERE = {"filename": "/somewhere/models/block.py", "line": 3, "name": "forward"}
TORCH = {"filename": str(Path(torch.__file__).parent / "nn" / "functional.py"), "line": 9, "name": "linear"}


def test_the_private_names_of_torch_that_note_allocations_are_where_they_were() -> None:
    for name, taken in (("_record_memory_history", {"enabled", "stacks"}), ("_dump_snapshot", {"filename"})):
        found = getattr(torch.cuda.memory, name, None)
        assert found is not None, f"torch.cuda.memory.{name} moved: see apps/allocations.py"
        assert taken <= {*inspect.signature(found).parameters}, f"{name} takes other arguments: see apps/allocations.py"


def move(action: str, addr: int, size: int, line: int = 0) -> dict[str, Any]:
    return {"action": action, "addr": addr, "size": size, "frames": [HERE | {"line": line}]}


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[int, int], list[dict[str, Any]]]:
    """What is live at the start, and what is done then, with addresses used again."""
    start = draw(st.dictionaries(st.integers(0, 5), st.integers(1, 9), max_size=4))
    live, trace = dict(start), []
    for line, addr in enumerate(draw(st.lists(st.integers(0, 5), max_size=20))):
        if addr in live:
            trace += [move("free_requested", addr, live[addr]), move("free_completed", addr, live.pop(addr))]
        else:
            live[addr] = draw(st.integers(1, 9))
            trace.append(move("alloc", addr, live[addr], line))
    return start, trace


@given(histories())
def test_the_peak_is_that_of_a_replay(history: tuple[dict[int, int], list[dict[str, Any]]]) -> None:
    start, trace = history
    live = {addr: Live(size, 1, BEFORE) for addr, size in start.items()}
    peak = dict(live)
    for event in trace:
        if event["action"] == "alloc":
            live[event["addr"]] = Live(event["size"], 1, find_place(event["frames"]))
        elif event["action"] == "free_requested":
            del live[event["addr"]]
        if sum(one.size for one in live.values()) > sum(one.size for one in peak.values()):
            peak = dict(live)
    found = find_peak(trace, {addr: one.size for addr, one in live.items()})
    by_place: dict[str, int] = {}
    for one in peak.values():
        by_place[one.place] = by_place.get(one.place, 0) + one.size
    assert {one.place: one.size for one in found} == by_place
    assert sum(one.number for one in found) == len(peak)
    assert [one.size for one in found] == sorted(by_place.values(), reverse=True)


def test_an_allocation_is_that_of_the_innermost_line_that_is_not_of_torch() -> None:
    assert find_place([TORCH, HERE, HERE | {"line": 7}]) == "models/block.py:3 forward"
    assert find_place([TORCH]) == "nn/functional.py:9 linear"
    assert find_place([]) == find_place([{"filename": "??", "line": 0, "name": "malloc"}]) == UNSEEN


def test_the_largest_are_told_with_all_that_there_was() -> None:
    told = tell_peak([Live(3 * 10**9, 2, "a.py:1 f"), Live(10**9, 1, BEFORE), Live(10**6, 1, "b.py:2 g")], most=2)
    assert told.splitlines() == [
        "at the peak 4.001 GB were allocated:",
        "     3.000 GB       2 x  a.py:1 f",
        f"     1.000 GB       1 x  {BEFORE}",
    ]


@pytest.mark.gpu
def test_a_gpu_tells_what_it_held_at_its_peak_and_which_line_asked_for_it(tmp_path: Path) -> None:
    device, mega = torch.device("cuda"), 16 << 20  # What other tests have left is smaller.
    there = torch.empty(4 * mega, dtype=torch.uint8, device=device)
    with allocations_noted():
        first = torch.empty(32 * mega, dtype=torch.uint8, device=device)
        second = torch.empty(16 * mega, dtype=torch.uint8, device=device)
        del first, second
        third = torch.empty(8 * mega, dtype=torch.uint8, device=device)
        live = save_allocations(tmp_path / "memory.pickle", device)
    assert [one.size for one in live[:2]] == [32 * mega, 16 * mega]
    assert all("test_allocations.py:" in one.place for one in live[:2])
    (before,) = (one for one in live if one.place == BEFORE)
    assert before.size >= there.nbytes and third.nbytes not in [one.size for one in live]
    assert (tmp_path / "memory.pickle").stat().st_size > 0
