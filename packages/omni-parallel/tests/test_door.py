"""Laws of cutting rows; what is refused at the door of a decoder is tried on ranks, in the workspace's tests."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omni_parallel.door import cut_row


@given(st.integers(1, 9), st.integers(1, 5))
def test_slices_laid_end_to_end_are_the_row_and_copies_of_its_last_token(size: int, count: int) -> None:
    row = torch.arange(2 * size * 3).view(2, size, 3)
    whole = torch.cat([cut_row(row, 1, index, count) for index in range(count)], dim=1)
    assert whole.shape[1] % count == 0
    assert whole.shape[1] - size < count
    assert torch.equal(whole[:, :size], row)
    assert all(torch.equal(whole[:, i], row[:, -1]) for i in range(size, whole.shape[1]))


@given(st.integers(1, 9), st.integers(1, 5))
def test_what_lies_beyond_the_row_can_be_filled(size: int, count: int) -> None:
    row = torch.arange(1, size + 1).expand(2, size)
    whole = torch.cat([cut_row(row, -1, index, count, fill=0) for index in range(count)], dim=-1)
    assert torch.equal(whole[:, :size], row)
    assert not whole[:, size:].any()


def test_torch_still_has_the_check_that_does_not_wait() -> None:
    torch._assert_async(torch.tensor(True), "fine")
    with pytest.raises(RuntimeError, match="cu_seqlens must end"):
        torch._assert_async(torch.tensor(False), "cu_seqlens must end at 8")
