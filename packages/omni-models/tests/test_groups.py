"""Laws of tokens that see each other both ways: those of an image do, in models that want it, within a document."""

import pytest
import torch
from shapes import SHAPE, make_config
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from omni_models import attention_problems, choose_attention, group_images, use_attention
from omni_models.attention import AttentionFn, eager, fa4, sdpa, varlen

BOUNDS = torch.tensor([0, 9, 10, 23, 24, 26, 46, 48], dtype=torch.int32)
"""Documents of two rows of 24 tokens, the longest of 20."""
GROUPS = torch.zeros(2, 24, dtype=torch.int64)
GROUPS[0, 3:9], GROUPS[0, 15:18], GROUPS[0, 22:24], GROUPS[1, 2:11] = 1, 2, 3, 1
"""The third group is of two documents, which see nothing of each other all the same."""


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("S", [24, 20], ids=["many documents", "one"])
def test_tokens_of_a_group_see_each_other_both_ways_within_the_window(S: int, window: int | None) -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((2, heads, S, 8), generator=draw) for heads in (4, 2, 2))
    groups = GROUPS[:, :S]
    facts = {"cu_seqlens": BOUNDS, "max_seqlen": 20} if S == 24 else {}
    bounds = facts.get("cu_seqlens", torch.tensor([0, S, 2 * S]))
    facts |= {"group_ids": groups, "sliding_window": window}
    outs = [attend(nn.Identity(), q, k, v, **facts)[0] for attend in (eager, sdpa)]
    # Said once more, token by token.
    for row in range(2):
        for i in range(S):
            document = int((bounds <= row * S + i).sum())
            seen = [
                j
                for j in range(S)
                if int((bounds <= row * S + j).sum()) == document
                and (j <= i or (groups[row, i] == groups[row, j] and groups[row, i] > 0))
                and (window is None or i - j < window)
            ]
            for head in range(4):
                weights = (k[row, head // 2, seen] @ q[row, head, i] * 8**-0.5).softmax(0)
                expected = weights @ v[row, head // 2, seen]
                assert all((out[row, i, head] - expected).abs().max() <= 1e-6 for out in outs)


@pytest.mark.parametrize("attend", [varlen, fa4])
def test_a_backend_without_groups_refuses_them_by_name(attend: AttentionFn) -> None:
    heads = [torch.zeros(2, 4, 24, 8)] * 3
    with pytest.raises(ValueError, match=r"attention has no group_ids, which this model asks for"):
        attend(nn.Identity(), *heads, group_ids=GROUPS)


def make_gemma() -> PreTrainedModel:
    text = {**SHAPE, "head_dim": 8, "query_pre_attn_scalar": 8}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "gemma3",
        text_config=text,
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=1,
        image_token_id=70,
    )
    return use_attention(AutoModelForImageTextToText.from_config(config), "eager")


def test_images_that_nothing_tells_attention_of_are_refused_and_text_is_not() -> None:
    model = make_gemma()
    ids_BS = torch.arange(48).view(2, 24) % 60
    kinds = torch.zeros_like(ids_BS)
    model(input_ids=ids_BS, token_type_ids=kinds, use_cache=False)
    kinds[0, 3:9] = 1
    told = "lets the tokens of an image see one another by a mask, by token_type_ids, .*: pass group_ids"
    for more in ({}, {"group_ids": kinds}):
        with pytest.raises(ValueError, match=told):
            model(input_ids=ids_BS, token_type_ids=kinds, use_cache=False, **more)
    with pytest.raises(ValueError, match=r"and was given images, .*: pass group_ids"):
        model(input_ids=ids_BS, pixel_values=torch.zeros(1, 3, 28, 28), use_cache=False)


def test_the_fastest_backend_for_images_has_groups_where_the_model_wants_them() -> None:
    model = make_gemma()
    for attend in ("varlen", "fa4"):
        told = attention_problems(model, attend, "cuda", torch.bfloat16, images=True)
        assert any("no groups of tokens that see each other both ways" in problem for problem in told)
        assert not any("groups" in problem for problem in attention_problems(model, attend, "cuda", torch.bfloat16))
    assert choose_attention(model, "cuda", torch.bfloat16, images=True) == "sdpa"


def test_groups_are_the_images_of_a_row() -> None:
    config = make_gemma().config
    tokens_BS = torch.tensor([[70, 70, 1, 70, 70, 70, 2], [70, 1, 1, 70, 1, 70, 70]])
    segments_BS = torch.tensor([[1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]])
    groups_BS = group_images(config, tokens_BS, segments_BS)
    assert groups_BS is not None
    assert groups_BS.tolist() == [[1, 1, 0, 2, 3, 3, 0], [1, 0, 0, 2, 0, 0, 0]]
    assert group_images(make_config("llama"), tokens_BS, segments_BS) is None
