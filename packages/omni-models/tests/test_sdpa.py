"""Laws of cuDNN's attention: what it takes, and the gradients of documents of any length."""

from itertools import pairwise

import pytest
import torch
from shapes import make_config
from torch import nn

from omni_models import attention_problems, build_model, use_attention
from omni_models.sdpa import cudnn, cudnn_problems, sdpa

HOPPER, TURING = (9, 0), (7, 5)


@pytest.mark.parametrize(
    ("dtype", "capability", "dims", "told"),
    [
        (torch.bfloat16, HOPPER, (128, 128), []),
        (torch.float16, (8, 0), (64, 8), []),
        (torch.float32, HOPPER, (64, 64), ["not torch.float32 on one of 9.0: use sdpa"]),
        (torch.float16, TURING, (64, 64), ["capability 8.0 or more, not torch.float16 on one of 7.5: use sdpa"]),
        (torch.bfloat16, None, (64, 64), ["not torch.bfloat16 on cpu: use sdpa"]),
        (torch.bfloat16, HOPPER, (192, 128), ["heads of a multiple of 8 up to 128, not 192: use varlen, or sdpa"]),
        (torch.bfloat16, HOPPER, (24, 12), ["heads of a multiple of 8 up to 128, not 12: use varlen, or sdpa"]),
    ],
)
def test_what_cudnn_does_not_take_is_told(
    dtype: torch.dtype, capability: tuple[int, int] | None, dims: tuple[int, int], told: list[str]
) -> None:
    problems = cudnn_problems(dtype, capability, dims, device_type="cuda" if capability else "cpu")
    assert len(problems) == len(told)
    assert all(part in problem for part, problem in zip(told, problems, strict=True))


def test_windows_are_refused_where_they_hide_something() -> None:
    model = build_model(make_config("mistral"), device="meta")
    told = "cudnn attention has no windows, which mistral asks for: use varlen, or sdpa."
    assert told in attention_problems(model, "cudnn", "cuda", torch.bfloat16)
    whole = build_model(make_config("llama"), device="meta")
    assert not [why for why in attention_problems(whole, "cudnn", "cuda", torch.bfloat16) if "window" in why]
    ids_BS = torch.arange(24)[None]
    with pytest.raises(ValueError, match="cudnn attention has no window, which would hide some of documents of 24"):
        use_attention(build_model(make_config("mistral")), "cudnn")(input_ids=ids_BS, use_cache=False)
    with pytest.raises(ValueError, match="needs bf16 or fp16 on a GPU"):
        use_attention(build_model(make_config("mistral", sliding_window=24)), "cudnn")(input_ids=ids_BS)


@pytest.mark.gpu
@pytest.mark.parametrize("bounds", [[0, 32, 64], [0, 9, 10, 32, 33, 64]])
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_of_cudnn_are_those_of_sdpa_to_the_precision_of_bf16(bounds: list[int], causal: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    drawn = [torch.randn((2, heads, 32, dim), generator=draw) for heads, dim in ((4, 24), (2, 24), (2, 16), (4, 16))]
    longest = max(stop - start for start, stop in pairwise(bounds))
    found = []
    for attend, dtype in ((sdpa, torch.float32), (cudnn, torch.bfloat16)):
        heads = [x.to("cuda", dtype).requires_grad_() for x in drawn[:3]]
        facts = {"cu_seqlens": torch.tensor(bounds, dtype=torch.int32, device="cuda"), "max_seqlen": longest}
        out, _ = attend(nn.Identity(), *heads, **facts, is_causal=causal)
        grads = torch.autograd.grad(out, heads, drawn[3].to("cuda", dtype).transpose(1, 2))
        found.append([x.float() for x in (out, *grads)])
    for exact, ours in zip(*found, strict=True):
        assert (ours - exact).norm() <= 2e-2 * exact.norm()
