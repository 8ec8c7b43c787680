"""Chats with media to tokens and arrays: what the model's own processor makes of them, and what of it is learnt."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from senses import FILMING, HEARING, SEEING, film, make_model, make_processor, picture, sound

from omni_models import Media, count_features, encode_media, media_problems, token_kinds
from omni_models.encode import _metadata, _tensors_of_films

IMAGE, VIDEO, AUDIO = {"type": "image"}, {"type": "video"}, {"type": "audio"}


def text(words):
    return {"type": "text", "text": words}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def assistant(words):
    return {"role": "assistant", "content": words}


CHATS = {
    "an image": ([user(IMAGE, text("What?")), assistant("A cat.")], Media([picture(20, 30)])),
    "two turns": (
        [user(text("First "), IMAGE), assistant("A cat."), user(IMAGE, text("and?"), IMAGE), assistant("Two dogs.")],
        Media([picture(20, 30), picture(16, 40, 1), picture(64, 9, 2)]),
    ),
    "a film": ([user(VIDEO, text("What?")), assistant("A dog.")], Media(videos=[film(5, 24, 16)])),
    "all": (
        [user(IMAGE, VIDEO, text("What?"), VIDEO), assistant("A cat.")],
        Media([picture(20, 30)], [film(4, 24, 16), film(2, 9, 40, 1)]),
    ),
    "text": ([{"role": "user", "content": "Hi"}, assistant("Hello!")], Media()),
}
SHOWN = [
    (family, chat)
    for family in SEEING
    for chat, (_, media) in CHATS.items()
    # InternVL's processor wants films of one chat to be of one length.
    if not media.videos or (family in FILMING and (family, chat) != ("internvl", "all"))
]


@dataclass
class Sample:
    tokens_N: np.ndarray
    learn_N: np.ndarray | None


def learn_all(messages, tokenizer):
    """Everything is learnt, tokenised as a tokenizer of text would."""
    chat = tokenizer.apply_chat_template(list(messages), tokenize=False)
    encoded = tokenizer(chat, add_special_tokens=False, return_offsets_mapping=True)
    return Sample(np.array(encoded["input_ids"], np.int32), np.ones(len(encoded["input_ids"]), bool))


def learn_marked(messages, tokenizer):
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    encoded = tokenizer.apply_chat_template(list(messages), **options)
    return Sample(np.array(encoded["input_ids"], np.int32), np.array(encoded["assistant_masks"], bool))


def own_output(processor, messages, media, **options):
    """What the processor itself makes of a chat whose parts hold their media."""
    images, videos = iter(media.images), iter(media.videos)
    metadata = [_metadata(frames.shape, times) for frames, times in media.videos]

    def filled(part):
        more = {"image": lambda: next(images), "video": lambda: next(videos)[0]}.get(part["type"])
        return {**part, part["type"]: more()} if more else part

    chat = [
        m if isinstance(m["content"], str) else {**m, "content": [filled(part) for part in m["content"]]}
        for m in messages
    ]
    how = {
        "return_tensors": _tensors_of_films(processor) if metadata else "np",
        "do_sample_frames": False,
        **({"video_metadata": metadata} if metadata else {}),
    }
    return processor.apply_chat_template(chat, tokenize=True, return_dict=True, processor_kwargs=how, **options)


@pytest.mark.parametrize(("family", "chat"), SHOWN)
def test_tokens_kinds_and_arrays_are_those_of_the_processor(family, chat):
    processor, config = make_processor(family), make_model(family).config
    messages, media = CHATS[chat]
    got = encode_media(processor, config, messages, media)
    own = own_output(processor, messages, media)
    assert got.tokens_N.dtype == np.int32 and got.learn_N is None
    assert got.tokens_N.tolist() == own.pop("input_ids")[0].tolist()
    kinds = [own.pop(name)[0].tolist() for name in ("mm_token_type_ids", "token_type_ids") if name in own]
    # InternVL counts what is around an image to it, Qwen2.5-Omni says nothing.
    assert family in ("internvl", "qwen2_5_omni_thinker") or kinds == [got.kinds_N.tolist()]
    for name in ("attention_mask", "num_crops", "video_metadata"):
        own.pop(name, None)
    assert set(got.arrays) == set(own)
    assert all(np.array_equal(got.arrays[name], own[name]) for name in own)


@pytest.mark.parametrize(("family", "chat"), SHOWN)
def test_a_tower_makes_as_many_features_as_there_are_placeholders(family, chat):
    model = make_model(family)
    messages, media = CHATS[chat]
    got = encode_media(make_processor(family), model.config, messages, media)
    arrays = {name: torch.from_numpy(array) for name, array in got.arrays.items()}
    counts = count_features(model.config, got.arrays)
    for kind, name, tower in ((1, "pixel_values", "image"), (2, "pixel_values_videos", "video")):
        assert (kind in counts) == (name in arrays)
        if kind in counts:
            grids = [arrays[f"{tower}_grid_thw"]] if f"{tower}_grid_thw" in arrays else []
            features = getattr(model, f"get_{tower}_features")(arrays[name], *grids)
            made = [len(feature) for feature in features.pooler_output]
            assert made == counts[kind]
            assert sum(made) == (got.kinds_N == kind).sum()


def test_films_are_told_with_the_times_of_their_frames():
    messages, media = CHATS["a film"]  # Five frames, half a second apart, two of which make a feature.
    processor, config = make_processor("qwen3_vl"), make_model("qwen3_vl").config
    told = processor.tokenizer.decode(encode_media(processor, config, messages, media).tokens_N)
    assert [time.partition(" ")[0] for time in told.split("<")[1:] if "seconds" in time] == ["0.2", "1.2", "2.0"]
    processor, config = make_processor("qwen2_5_vl"), make_model("qwen2_5_vl").config
    assert encode_media(processor, config, messages, media).arrays["second_per_grid_ts"].tolist() == [1.0]


@pytest.mark.parametrize("family", HEARING)
def test_a_tower_hears_as_many_features_as_there_are_placeholders(family):
    model = make_model(family)
    messages = [user(AUDIO, text("and "), AUDIO), assistant("A bell.")]
    waves = [sound(10_000), sound(3_830)]
    got = encode_media(make_processor(family), model.config, messages, Media(audios=waves), render=learn_all)
    heard = torch.from_numpy(got.arrays["feature_attention_mask"]).sum(-1)
    (ears,) = (part for name, part in model.named_modules() if name.rpartition(".")[2] == "audio_tower")
    made = ears._get_feat_extract_output_lengths(heard)[1].tolist()
    assert made == count_features(model.config, got.arrays)[3] and sum(made) == (got.kinds_N == 3).sum()
    assert np.array_equal(got.learn_N, got.kinds_N == 0)
    with torch.no_grad():
        arrays = {name: torch.from_numpy(array) for name, array in got.arrays.items()}
        model(input_ids=torch.from_numpy(got.tokens_N)[None].long(), **arrays, use_cache=False)


@pytest.mark.parametrize(("family", "chat"), SHOWN)
def test_what_is_learnt_follows_the_placeholders_which_never_are(family, chat):
    processor, config = make_processor(family, marked=True), make_model(family).config
    messages, media = CHATS[chat]
    got = encode_media(processor, config, messages, media, render=learn_marked)
    said = [m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant"]
    assert processor.tokenizer.decode(got.tokens_N[got.learn_N]) == "".join(said)
    # Before, transformers had its masks beside what is said, once a placeholder was replaced.
    if Version(transformers.__version__) >= Version("5.23"):
        own = own_output(processor, messages, media, return_assistant_tokens_mask=True)
        assert got.learn_N.tolist() == np.array(own["assistant_masks"]).reshape(-1).astype(bool).tolist()
    everything = encode_media(processor, config, messages, media, render=learn_all)
    assert np.array_equal(everything.learn_N, got.kinds_N == 0)


class Silent:
    """A processor that does not say what it put for the marks of a chat, like some, in some versions at least."""

    def __init__(self, processor):
        self.own = processor

    def __getattr__(self, name):
        return getattr(self.own, name)

    def __call__(self, **given):
        return {name: made for name, made in self.own(**given).items() if name != "text_replacement_offsets"}


@pytest.mark.parametrize(
    ("family", "chat"), [pair for pair in SHOWN if pair[0] in ("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker")]
)
def test_what_is_learnt_is_found_where_a_processor_only_repeats_its_marks_and_does_not_say_so(family, chat):
    processor, config = make_processor(family, marked=True), make_model(family).config
    told, silent = (encode_media(p, config, *CHATS[chat], render=learn_marked) for p in (processor, Silent(processor)))
    assert silent.learn_N.any() and silent.learn_N.tolist() == told.learn_N.tolist()


def test_marks_without_a_text_between_them_are_found_too():
    processor, config = make_processor("qwen2_vl", marked=True), make_model("qwen2_vl").config
    processor.chat_template = processor.chat_template.replace("<|vision_start|>", "").replace("<|vision_end|>", "")
    messages, media = [user(IMAGE, IMAGE, text("Which?")), assistant("One.")], Media([picture(20, 30), picture(9, 9)])
    got = encode_media(Silent(processor), config, messages, media, render=learn_marked)
    assert processor.tokenizer.decode(got.tokens_N[got.learn_N]) == "One.<|im_end|>"


def test_what_is_learnt_is_refused_where_a_processor_puts_more_than_marks_and_does_not_say_so():
    processor, config = Silent(make_processor("qwen3_vl", marked=True)), make_model("qwen3_vl").config
    for render in (learn_marked, learn_all):
        with pytest.raises(ValueError, match="Silent does not say what it puts into a chat for its media"):
            encode_media(processor, config, *CHATS["a film"], render=render)
    assert encode_media(processor, config, *CHATS["a film"]).learn_N is None


def test_a_placeholder_that_the_assistant_says_is_not_learnt():
    processor, config = make_processor("qwen2_vl", marked=True), make_model("qwen2_vl").config
    messages = [user(text("Draw.")), {"role": "assistant", "content": [text("Here: "), IMAGE]}]
    got = encode_media(processor, config, messages, Media([picture(20, 30)]), render=learn_marked)
    said = processor.tokenizer.decode(got.tokens_N[got.learn_N])
    assert said == "Here: <|vision_start|><|vision_end|><|im_end|>"


def test_the_template_is_given_its_arguments_or_is_another():
    processor, config = make_processor("qwen2_vl", marked=True), make_model("qwen2_vl").config
    messages, media = CHATS["text"]
    other = "{{ greeting }}{% generation %}{{ messages[1].content }}{% endgeneration %}"
    how = {"chat_template": other, "greeting": "Good day! "}
    got = encode_media(processor, config, messages, media, render=learn_marked, template_kwargs=how)
    assert processor.tokenizer.decode(got.tokens_N) == "Good day! Hello!"
    assert processor.tokenizer.decode(got.tokens_N[got.learn_N]) == "Hello!"
    processor.chat_template = None
    with pytest.raises(ValueError, match="the processor has no chat template: name one as template_kwargs"):
        encode_media(processor, config, messages, media)


def test_patches_that_are_not_those_of_the_grid_are_told():
    config = make_model("qwen2_vl").config
    media = {"image_grid_thw": np.array([[1, 4, 4]]), "pixel_values": np.zeros((15, 96), np.float32)}
    tokens = np.full(4, config.image_token_id)
    problems = media_problems(config, tokens, media)
    assert problems == ["pixel_values has 15 patches where image_grid_thw tells of 16."]


def test_parts_and_media_that_differ_are_refused_with_their_numbers():
    processor, config = make_processor("qwen2_vl"), make_model("qwen2_vl").config
    messages = [user(IMAGE, text("What?")), assistant("A cat.")]
    with pytest.raises(
        ValueError, match=r"there are 0 image\(s\) for 1 part\(s\), 1 video\(s\) for 0 part\(s\) of the"
    ):
        encode_media(processor, config, messages, Media(videos=[film(2, 9, 9)]))


def test_placeholders_and_features_that_differ_are_refused_with_their_numbers():
    processor, config = make_processor("qwen2_vl"), make_model("qwen2_vl").config
    messages, media = CHATS["an image"]
    config.vision_config.spatial_merge_size = 1
    with pytest.raises(
        ValueError, match=r"8 tokens stand for images, but the tower of qwen2_vl makes 32 features of 1"
    ):
        encode_media(processor, config, messages, media)
    config.vision_config.spatial_merge_size = 2
    spelt = [user(IMAGE, text("What is <|video_pad|>?")), assistant("A cat.")]
    with pytest.raises(ValueError, match=r"the template writes 1 video marks for 0 video\(s\): does a text"):
        encode_media(processor, config, spelt, media)
    with pytest.raises(ValueError, match=r"the template writes 2 image marks for 1 image\(s\)"):
        encode_media(processor, config, [user(IMAGE, text("<|image_pad|>")), assistant("A cat.")], media)


def test_media_whose_features_are_unknown_are_refused():
    config = make_model("qwen2_vl").config
    with pytest.raises(
        ValueError, match="qwen2_vl: how many features it makes of aspect_ratio_ids, pixel_values is not"
    ):
        count_features(config, {"pixel_values": np.zeros(3), "aspect_ratio_ids": np.zeros(3)})


def test_who_says_what_to_learn_must_read_the_same_tokens():
    processor, config = make_processor("qwen2_vl"), make_model("qwen2_vl").config
    messages, media = CHATS["an image"]

    def reads_less(messages, tokenizer):
        whole = learn_all(messages, tokenizer)
        return Sample(whole.tokens_N[1:], whole.learn_N[1:])

    with pytest.raises(ValueError, match="renders this chat to other tokens than the processor does"):
        encode_media(processor, config, messages, media, render=reads_less)


def test_a_film_of_a_slow_rate_takes_longer_for_a_model_that_hears_too():
    """Its processor knows of one rate, that of all films, and of none if it is not told."""
    processor, config = make_processor("qwen2_5_omni_thinker"), make_model("qwen2_5_omni_thinker").config
    films = Media(videos=[film(4, 24, 16, fps=0.5), film(4, 24, 16)])
    got = encode_media(processor, config, [user(VIDEO, VIDEO), assistant("Slow.")], films)
    assert got.arrays["video_second_per_grid"].tolist() == [4.0, 1.0]


def test_films_of_tokens_of_images_are_told_apart_by_their_ends():
    config = make_model("glm4v").config
    start, end, image = config.video_start_token_id, config.video_end_token_id, config.image_token_id
    tokens = np.array([image, start, image, 5, image, end, image])
    assert token_kinds(config, tokens).tolist() == [1, 0, 2, 0, 2, 0, 1]
