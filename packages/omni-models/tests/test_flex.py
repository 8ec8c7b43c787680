"""Laws of flex attention: what it leaves out is what nobody sees, and it gives what the reference gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask

from omni_models.attention import eager
from omni_models.flex import BLOCK, find_ranges, flex, flex_problems, list_blocks


def make_bounds(rows: list[list[int]]) -> Tensor:
    return torch.tensor([0, *(length for row in rows for length in row)]).cumsum(0).to(torch.int32)


@st.composite
def packed_rows(draw: st.DrawFn, most: int = 40) -> list[list[int]]:
    """Lengths of the documents of one to three rows of the same length."""
    length = draw(st.integers(1, most))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        cuts = sorted(draw(st.sets(st.integers(1, length - 1), max_size=6))) if length > 1 else []
        rows.append([stop - start for start, stop in zip([0, *cuts], [*cuts, length], strict=True)])
    return rows


@settings(deadline=None, max_examples=60)
@given(packed_rows(), st.sampled_from([1, 4, 8]), st.sampled_from([None, 1, 3, 9]), st.booleans())
def test_the_blocks_are_those_that_torch_finds_by_looking_at_every_pair(
    rows: list[list[int]], size: int, window: int | None, causal: bool
) -> None:
    B, S = len(rows), sum(rows[0])
    reach = S if window is None else window - 1
    ahead = 0 if causal else reach
    seen = find_ranges(make_bounds(rows), B, S, reach, ahead)
    seeing = find_ranges(make_bounds(rows), B, S, ahead, reach)
    document_BS = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in rows])

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        near = (q - k <= reach) & (k - q <= ahead)
        return (document_BS[b, q] == document_BS[b, k]) & near

    mask = create_block_mask(sees, B, None, S, S, device="cpu", BLOCK_SIZE=size)
    theirs = [
        (mask.kv_num_blocks, mask.kv_indices),
        (mask.full_kv_num_blocks, mask.full_kv_indices),
        (mask.q_num_blocks, mask.q_indices),
        (mask.full_q_num_blocks, mask.full_q_indices),
    ]
    some, some_index, whole, whole_index, *others = (*list_blocks(seen, size), *list_blocks(seeing, size))
    ours = [(some, some_index), (whole, whole_index), (others[0], others[1]), (others[2], others[3])]
    for (count, index), (their_count, their_index) in zip(ours, theirs, strict=True):
        assert their_count is not None and their_index is not None
        assert count.dtype == index.dtype == torch.int32
        assert torch.equal(count, their_count)
        told = torch.arange(index.shape[-1]) < count[..., None]
        assert torch.equal(index[told], their_index[told])
        assert index.min() >= 0 and index.max() < index.shape[-1]


VARIANTS = {
    "causal": {},
    "both ways": {"is_causal": False},
    "window": {"sliding_window": 5},
    "window both ways": {"sliding_window": 5, "is_causal": False},
    "window of one": {"sliding_window": 1},
    "softcap": {"softcap": 3.0, "scaling": 0.7},
    "sinks": {"s_aux": True},
    "all": {"sliding_window": 40, "softcap": 3.0, "s_aux": True},
}


@pytest.mark.parametrize("shape", [(4, 2, 16, 16), (4, 4, 8, 24), (6, 1, 24, 12)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_output_and_gradients_are_those_of_eager(variant: str, shape: tuple[int, ...], device: str) -> None:
    N, K, D, Dv = shape
    rows, draw = [[90, 1, 109], [3, 197]], torch.Generator().manual_seed(0)
    S = sum(rows[0])
    assert S % BLOCK and S > BLOCK
    facts = {"cu_seqlens": make_bounds(rows).to(device), "max_seqlen": 197, **VARIANTS[variant]}
    sizes = ((2, N, S, D), (2, K, S, D), (2, K, S, Dv), (N,))
    drawn = [torch.randn(size, generator=draw).to(device) for size in sizes]
    weight = torch.randn((2, S, N, Dv), generator=draw).to(device)
    found = []
    for attend in (eager, flex):
        inputs = [x.clone().requires_grad_() for x in (drawn if "s_aux" in facts else drawn[:3])]
        sinks = {"s_aux": inputs[3]} if "s_aux" in facts else {}
        out, _ = attend(nn.Identity(), *inputs[:3], **{**facts, **sinks})
        assert out.shape == (2, S, N, Dv) and out.is_contiguous()
        found.append((out, *torch.autograd.grad(out, inputs, weight)))
    for exact, ours in zip(*found, strict=True):
        # In a window of one queries and keys have a gradient of zero, the difference of numbers around 1.
        assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max().clamp(min=1)


def test_documents_told_by_positions_are_those_told_by_bounds() -> None:
    draw = torch.Generator().manual_seed(0)
    heads = [torch.randn((1, 2, 12, 16), generator=draw) for _ in range(3)]
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    told, _ = flex(nn.Identity(), *heads, cu_seqlens=make_bounds([[5, 7]]), max_seqlen=7)
    found, _ = flex(nn.Identity(), *heads, position_ids=positions)
    assert torch.equal(told, found)


def test_a_device_that_it_is_not_for_is_refused() -> None:
    assert not flex_problems("cpu")
    assert flex_problems("mps") == ["flex attention is for CUDA and for CPUs, not for mps: use sdpa, or eager."]


def test_the_operator_behind_flex_attention_is_where_it_was() -> None:
    operator = torch.ops.higher_order.flex_attention
    assert operator.name() == "flex_attention", "omni_models.flex calls it on CPUs by this name: find what replaces it."


@pytest.mark.gpu
def test_other_documents_are_not_another_compilation() -> None:
    from torch._dynamo.utils import counters

    heads = [torch.randn((2, 4, 256, 64), device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    graphs = []
    for rows in ([[256], [256]], [[100, 156], [255, 1]], [[1] * 256, [64] * 4]):
        facts = {"cu_seqlens": make_bounds(rows).to("cuda"), "max_seqlen": max(max(row) for row in rows)}
        flex(nn.Identity(), *heads, **facts)[0].sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] == graphs[2]
