"""Laws of wrapped attention that one rank can show; the workspace's `tests/test_sequence.py` holds the rest."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from omni_mesh.mesh import Mesh
from omni_parallel import ulysses

pytestmark = pytest.mark.filterwarnings("ignore:.*barrier.*:UserWarning")
WHOLE_BS = torch.arange(5).expand(2, 5)


def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: None = None, **facts: Any) -> tuple[Tensor, None]:
    repeats = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(repeats, dim=1).to(q.dtype) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2), None


def heads(q: int = 6, k: int = 2, v: int = 2, tokens: int = 5, **kinds: Any) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, tokens, 4, generator=random) for n in (q, k, v)]


@pytest.mark.parametrize("chunks", [1, 2])
def test_on_one_rank_it_is_the_attention_that_was_there(mesh: Mesh, chunks: int) -> None:
    plain, wrapped = ([x.requires_grad_() for x in heads()] for _ in range(2))
    expected = attend(nn.Module(), *plain)[0]
    out = ulysses(dist.group.WORLD, chunks=chunks)(attend)(nn.Module(), *wrapped, whole_position_ids=WHOLE_BS)[0]
    assert torch.equal(out, expected)
    expected.square().sum().backward()
    out.square().sum().backward()
    assert all(torch.allclose(a.grad, b.grad) for a, b in zip(plain, wrapped, strict=True))


def test_tensors_of_several_dtypes_cross_in_the_widest_and_come_out_as_they_were(mesh: Mesh) -> None:
    q, k, v = heads()
    exact = k.double() + 1e-12
    seen = []

    def look(module: nn.Module, *given: Any, **facts: Any) -> tuple[Tensor, None]:
        seen.extend(given[:3])
        return attend(module, *given, **facts)

    ulysses(dist.group.WORLD)(look)(nn.Module(), q, exact, v.bfloat16(), whole_position_ids=WHOLE_BS)
    assert [x.dtype for x in seen] == [torch.float32, torch.float64, torch.bfloat16]
    assert torch.equal(seen[1], exact)
    assert torch.equal(seen[2], v.bfloat16())


@pytest.mark.parametrize(
    ("given", "facts", "told"),
    [
        (heads(), {}, "not told of the row"),
        (
            [*heads()[:1], *heads(tokens=7)[1:]],
            {},
            "k is of 7 tokens, this rank's slice of a row of 5",
        ),
        (heads(k=4), {}, "k has 4 heads, which do not divide 6"),
        ([*heads(), torch.ones(2, 1, 5, 5)], {}, "a mask [2, 1, 5, 5] came along"),
        (heads(), {"s_aux": torch.ones(4)}, "s_aux has 4 values for 6 heads"),
    ],
)
def test_what_cannot_be_cut_by_heads_is_refused_by_name(
    mesh: Mesh, given: list[Tensor], facts: dict[str, Any], told: str
) -> None:
    whole = {} if "not told" in told else {"whole_position_ids": WHOLE_BS}
    with pytest.raises(ValueError) as problem:
        ulysses(dist.group.WORLD)(attend)(nn.Module(), *given, **facts, **whole)
    assert told in str(problem.value)
