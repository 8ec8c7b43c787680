"""Laws of rounding by dice: right on average, exact where it can be, and the same whenever it is done again."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from omni_parallel.rounding import Throw, philox, round_by, round_moments, throw

ALL = torch.arange(1 << 16)
"""Every throw of 16 bits."""
WHAT = Throw(torch.tensor(7.0), param=3, shard=0)


def words(*numbers: int) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(number) for number in numbers)


@pytest.mark.parametrize(
    ("counter", "key", "found"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_dice_are_those_of_the_paper(counter: tuple[int, ...], key: tuple[int, ...], found: tuple[int, ...]) -> None:
    """The known answers that its authors publish."""
    assert philox(words(*counter), words(*key)) == words(*found)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("x", [1.0, 1.001, -3.14159, 1e-30, -6.1e-39, 1e-41, 3.3e38, 255.99, 0.0])
def test_over_all_throws_the_mean_is_the_number_itself(x: float) -> None:
    number = torch.tensor(x)
    rounded = round_by(number.expand(len(ALL)), ALL)
    assert rounded.dtype == torch.bfloat16
    # Both neighbours have few digits, so that even the sum of so many is exact in fp64.
    assert rounded.double().mean().item() == number.double().item()
    below, above = rounded.double().min(), rounded.double().max()
    assert below <= number.double() <= above and len(rounded.unique()) <= 2


def test_what_needs_no_rounding_stays() -> None:
    exact = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.finfo(torch.bfloat16).tiny])
    for bits in (0, 1, 0xFFFF):
        for numbers in (exact.float(), special):
            rounded = round_by(numbers, torch.full(numbers.shape, bits))
            assert torch.equal(rounded.view(torch.int16), numbers.bfloat16().view(torch.int16)), bits
        # The last two have digits that are cut off, and such that more would make a number of them.
        nans = torch.tensor([0x7FC00000, -0x400000, 0x7F800001, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
        assert round_by(nans, torch.full((4,), bits)).isnan().all()


def test_a_piece_throws_what_the_whole_does() -> None:
    for start in (0, 1 << 34):
        whole = throw(replace(WHAT, start=start), 103)
        assert len(whole) == 103 and whole.min() >= 0 and whole.max() < 1 << 32
        assert torch.equal(throw(replace(WHAT, start=start + 40), 50), whole[40:90])
        assert torch.equal(throw(replace(WHAT, start=start), 103), whole), "and again"


def test_each_step_parameter_and_part_of_it_throws_for_itself() -> None:
    others = [
        WHAT,
        replace(WHAT, steps=torch.tensor(8.0)),
        replace(WHAT, param=4),
        replace(WHAT, shard=1),
        replace(WHAT, start=1 << 34),
        replace(WHAT, steps=torch.tensor(3.0), param=7),
    ]
    found = torch.cat([throw(other, 4096) for other in others])
    # Of 24576 words of 32 bits 0.07 pairs are alike by chance.
    assert len(found.unique()) > len(found) - 3


def test_throws_are_even_and_the_two_halves_have_nothing_to_do_with_each_other() -> None:
    n = 1 << 18
    found = throw(WHAT, n)
    halves = torch.stack([found & 0xFFFF, found >> 16]).double() / (1 << 16) - 0.5
    sigma = (1 / 12) ** 0.5 / n**0.5
    assert halves.mean(1).abs().max() < 5 * sigma
    for left, right in ((halves[0], halves[1]), (halves[0, 1:], halves[0, :-1]), (halves[0, 4:], halves[0, :-4])):
        assert (left * right).mean().abs() < 5 / 12 / n**0.5
    # Each bit is set in half of them.
    shares = torch.stack([(found >> bit & 1).double().mean() for bit in range(32)])
    assert (shares - 0.5).abs().max() < 5 * 0.5 / n**0.5


def test_moments_are_right_on_average() -> None:
    n = 1 << 18
    first, second = torch.tensor(1.0 + 2**-10).expand(n), torch.tensor(3e-9).expand(n)
    for x, rounded in zip((first, second), round_moments(first, second, WHAT), strict=True):
        step = rounded.double().max() - rounded.double().min()
        assert step > 0 and (rounded.double().mean() - x[0].double()).abs() < 5 * 0.5 * step / n**0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_dice_are_the_same() -> None:
    x = torch.randn(1003)
    for start in (0, 1 << 34):
        here, there = replace(WHAT, start=start), replace(WHAT, steps=WHAT.steps.cuda(), start=start)
        ours, theirs = round_moments(x, -x, here), round_moments(x.cuda(), -x.cuda(), there)
        assert all(torch.equal(mine, other.cpu()) for mine, other in zip(ours, theirs, strict=True))
