"""Laws of what a model has its media encoded by: it is found in every family, and its features may be others."""

from typing import Any

import pytest
import torch
from senses import FILMING, HEARING, SEEING, make_model, make_processor, picture, sound, told_alone
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from omni_models import Media, encode_media, encoder_kinds, map_attention, map_encoders, sized, use_attention
from omni_models.encoders import EncodeFn, replace_features
from omni_models.sized import encode_sized, tell_sizes


@pytest.mark.parametrize("family", SEEING)
def test_the_encoders_of_a_family_are_found(family: str) -> None:
    kinds = {"image": True, "video": family in FILMING and family != "internvl", "audio": family in HEARING}
    assert encoder_kinds(make_model(family)) == tuple(kind for kind, has in kinds.items() if has)


@pytest.mark.parametrize("family", SEEING)
def test_features_that_are_put_in_their_place_are_what_the_model_goes_on_with(family: str) -> None:
    model = make_model(family)
    parts, media = [{"type": "image"}], {"images": [picture(20, 30)]}
    if family in HEARING:
        parts, media = [*parts, {"type": "audio"}], {**media, "audios": [sound(4_000)]}
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}]
    told = told_alone(family, encode_media(make_processor(family), model.config, chat, Media(**media)))
    before = model(**told, use_cache=False).logits
    called: list[str] = []

    def spread(kind, encode, replace):
        def encode_other(*args, **kwargs):
            called.append(kind)
            return replace(encode(*args, **kwargs), lambda features_FX: features_FX * factors[kind])

        return encode_other

    factors = dict.fromkeys(("image", "video", "audio"), 1.0)
    model = map_encoders(model, spread)
    assert torch.equal(model(**told, use_cache=False).logits, before)
    assert sorted(called) == sorted(part["type"] for part in parts)
    for kind in called[: len(parts)]:
        factors[kind] = 2.0
        assert not torch.allclose(model(**told, use_cache=False).logits, before)
        factors[kind] = 1.0


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"])
@pytest.mark.parametrize("attend", ["eager", "sdpa"])
def test_a_tower_calls_attention_once_a_layer_for_all_images(family: str, attend: str) -> None:
    model = make_model(family)
    images = [picture(20, 30), picture(40, 24), picture(64, 64)]
    chat = [{"role": "user", "content": [{"type": "image"}] * 3}, {"role": "assistant", "content": "x"}]
    told = told_alone(family, encode_media(make_processor(family), model.config, chat, Media(images)))
    before = model(**told, use_cache=False).logits
    called: list[torch.nn.Module] = []

    def count(own):
        def attend_counted(module, *args, **kwargs):
            called.append(module)
            return own(module, *args, **kwargs)

        return attend_counted

    model = map_attention(use_attention(model, attend), count)
    kinds = {name: x for name, x in told.items() if name != "attention_mask"}
    torch.testing.assert_close(model(**kinds, use_cache=False).logits, before, atol=1e-5, rtol=1e-5)
    assert len(called) == len({*called}) > model.config.get_text_config().num_hidden_layers


def test_features_of_layers_below_go_with_those_they_belong_to() -> None:
    top, deep = torch.arange(12.0).view(4, 3), [torch.arange(8.0).view(4, 2), torch.ones(4, 1)]
    output = BaseModelOutputWithPooling(pooler_output=top.split([1, 3]))  # pyright: ignore[reportArgumentType]
    output.deepstack_features = deep
    seen: list[Tensor] = []

    def turn(features_FX: Tensor) -> Tensor:
        seen.append(features_FX)
        return features_FX.flip(0)

    replaced = replace_features(output, turn)
    assert [each.shape for each in seen] == [(4, 6)]
    assert torch.equal(torch.cat(replaced.pooler_output), top.flip(0))
    assert all(torch.equal(a, b.flip(0)) for a, b in zip(replaced.deepstack_features, deep, strict=True))


def test_models_that_have_media_encoded_inside_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"Qwen2AudioForConditionalGeneration has no encoder of .*get_audio_features"):
        map_encoders(make_model("qwen2_audio"), lambda kind, encode, replace: encode)
    with pytest.raises(ValueError, match="BaseModelOutputWithPooling, has none of pooler_output, last_hidden_state"):
        replace_features(BaseModelOutputWithPooling(), lambda features_FX: features_FX)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_tower_that_is_told_of_sizes_by_the_host_never_looks_at_those_of_the_device(family: str, kind: str) -> None:
    model, sizes = make_model(family), [(1, 4, 8), (1, 8, 2), (2 if kind == "video" else 1, 4, 4)]
    patches_PX = torch.randn(sum(t * h * w for t, h, w in sizes), 3 * 2 * 4 * 4, generator=torch.Generator())
    told: list[EncodeFn] = []
    map_encoders(model, lambda kind, encode, replace: told.append(encode) or encode)
    encode = told[encoder_kinds(model).index(kind)]
    wanted = torch.cat(encode(patches_PX, torch.tensor(sizes)).pooler_output)
    for found in (
        encode(patches_PX, torch.zeros(3, 3), sizes=sizes),
        encode(patches_PX, **{f"{kind}_grid_thw": torch.zeros(3, 3)}, sizes=sizes),
    ):
        assert [len(each) for each in found.pooler_output] == [t * h * w // 4 for t, h, w in sizes]
        assert torch.equal(torch.cat(found.pooler_output), wanted)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_attention_of_a_tower_has_the_bounds_that_the_host_told(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(sized, "tell_sizes", lambda *args: told.append(tell_sizes(*args)) or told[-1])
    seen: list[tuple[int, int]] = []

    def attend(module, q_BNSD, k_BKSD, v_BKSD, mask=None, **facts):
        seen.append((facts["cu_seqlens"].data_ptr(), facts["max_seqlen"]))
        return v_BKSD.transpose(1, 2), None

    model = use_attention(make_model(family), attend)
    owner, hooks = model.model, len(model.model.visual._forward_pre_hooks)
    rows = {"cu_seqlens": torch.tensor([0, 5]), "max_seqlen": 5}
    encode_sized(
        owner, "image", owner.get_image_features, torch.randn(48, 96), None, sizes=[(1, 4, 8), (1, 4, 4)], **rows
    )
    (facts,) = told
    kinds = [("cu_seqlens", "max_seqlen"), ("cu_window_seqlens", "max_window_seqlen")]
    assert {*seen} == {(facts[bounds].data_ptr(), facts[most]) for bounds, most in kinds if bounds in facts}
    assert len(owner.visual._forward_pre_hooks) == hooks


@pytest.mark.parametrize("family", ["qwen3_vl", "glm4v", "gemma3"])
def test_towers_that_need_more_are_not_told(family: str) -> None:
    given: list[dict[str, object]] = []
    owner = torch.nn.Module()
    owner.config, owner.visual = make_model(family).config, torch.nn.Module()
    owner.visual.spatial_merge_size = 2
    encode_sized(owner, "image", lambda *args, **how: given.append(how), torch.zeros(1), sizes=[(1, 4, 4)])
    assert given == [{}]
