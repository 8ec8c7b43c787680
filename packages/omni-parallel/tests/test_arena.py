"""Laws of memory of the host that is given out: no two have the same, all that is written is read, none is too much."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from omni_parallel.arena import ALIGNED, FINEST, Arena, Place
from omni_parallel.host import Host


def make_arena() -> tuple[Arena, list[int]]:
    made: list[int] = []

    def make(nbytes: int) -> Host:
        made.append(nbytes)
        return Host(torch.zeros(nbytes, dtype=torch.uint8))

    return Arena(make), made


def write(arena: Arena, place: Place, x: Tensor) -> None:
    for first, last, memory in arena.parts(place, len(x)):
        memory.copy_(x[first:last])


def read(arena: Arena, place: Place, nbytes: int) -> Tensor:
    return torch.cat([memory for _, _, memory in arena.parts(place, nbytes)])


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5_000)), max_size=60))
def test_what_was_written_is_read_whatever_came_and_went(moves: list[tuple[bool, int]]) -> None:
    arena, made = make_arena()
    held: list[tuple[Place, Tensor]] = []
    most = 0
    for number, (leaves, size) in enumerate(moves):
        if leaves and held:
            place, x = held.pop(size % len(held))
            assert torch.equal(read(arena, place, len(x)), x)
            arena.returned.append(place)
        else:
            x = torch.full((size,), number, dtype=torch.uint8)
            place = arena.take(size)
            before = sorted(other for other, _ in held if other < place)
            gaps = [
                after.begin - end for end, after in zip([0, *(p.end for p in before)], [*before, place], strict=True)
            ]
            assert max(gaps[:-1], default=0) < size and (gaps[-1] == 0), "the first gap that is large enough"
            write(arena, place, x)
            held.append((place, x))
            most = max(most, place.end)
    assert all(torch.equal(read(arena, place, len(x)), x) for place, x in held)
    assert sum(made) == arena.nbytes <= max(most * (1 + 1 / FINEST), 0) + ALIGNED


def test_the_first_gap_that_is_large_enough_is_taken() -> None:
    arena, _ = make_arena()
    first, second, _ = arena.take(1_000), arena.take(300), arena.take(1)
    assert first == (0, 1_024) and second == (1_024, 1_536)
    arena.returned.extend([first, second])
    assert arena.take(1_025) == (0, 1_536)


def test_sizes_of_the_next_step_need_no_other_memory() -> None:
    arena, made = make_arena()
    for size in (10_000, 9_000, 7_000, 9_999):
        places = [arena.take(size) for _ in range(20)]
        assert len(made) <= 20
        arena.returned.extend(reversed(places))
    held = arena.nbytes
    places = [arena.take(10_300) for _ in range(20)]
    assert len(made) <= 22, "a little more is added at the end, not for each"
    assert held < arena.nbytes < 1.06 * held


def test_a_place_across_chunks_is_told_in_parts() -> None:
    arena, _ = make_arena()
    arena.returned.append(arena.take(600))
    place = arena.take(2_000)
    assert [(first, last) for first, last, _ in arena.parts(place, 2_000)] == [(0, 1_024), (1_024, 2_000)]
