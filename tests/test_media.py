"""Documents with images and films in packed rows: what plain transformers makes of each alone, and where things are."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from senses import SEEING, film, make_model, make_processor, picture, sound, told_alone

from omni_data import Sample, document_bounds, pack_batch, render_chat
from omni_models import Media, encode_media, group_images, media_positions, summed_loss, use_attention

IMAGE, VIDEO, AUDIO = {"type": "image"}, {"type": "video"}, {"type": "audio"}


def chat(*parts, said="A cat."):
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": said}]


IMAGES = [
    (chat(IMAGE, "What?", IMAGE), Media([picture(20, 30), picture(16, 40, 1)])),
    (chat("No picture.", said="Nothing."), Media()),
    (chat("x", IMAGE, said="A cat, and a dog."), Media([picture(50, 50, 6)])),
]
FILMS = [
    (chat(VIDEO, "A film?"), Media(videos=[film(5, 24, 16)])),
    (chat("None.", said="No."), Media()),
    (chat("1", VIDEO, "2", VIDEO), Media(videos=[film(2, 9, 40, 4), film(4, 20, 20, 5, fps=0.5)])),
]
BOTH = [(chat(IMAGE, VIDEO), Media([picture(33, 9, 3)], [film(2, 9, 40, 4)]))]
SOUNDS = [
    (chat(AUDIO, "What?", AUDIO), Media(audios=[sound(10_000), sound(4_000)])),
    (chat("No sound.", said="Nothing."), Media()),
    (chat("x", AUDIO, said="A bell."), Media(audios=[sound(14_000, 3)])),
]
ALL = [
    (chat(AUDIO, IMAGE, "x", VIDEO, AUDIO), Media([picture(9, 30)], [film(3, 9, 40, 4, fps=1.0)], [sound(3_000)] * 2))
]
# GLM-4V writes films with the tokens of images; transformers refuses a batch of both.
CASES = [(f, [*IMAGES, *FILMS, *BOTH]) for f in SEEING if f not in ("glm4v", "gemma3", "internvl")]
CASES += [("glm4v", IMAGES), ("glm4v", FILMS), ("qwen2_5_omni_thinker", [*SOUNDS, *ALL])]
# Positions of these are places in a document.
FLAT = [("qwen2_audio", SOUNDS), ("gemma3", IMAGES), ("internvl", [*IMAGES, *FILMS[:2], *BOTH])]


def encoded(family, model, documents):
    processor = make_processor(family)
    return [encode_media(processor, model.config, *document, render=render_chat) for document in documents]


def tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def loss_alone(model, document):
    """The summed loss that plain transformers makes of one document, by its processor's own output."""
    told = told_alone(model.config.model_type, document)
    logits_1NV = model(use_cache=False, **told).logits
    labels_N = torch.where(torch.from_numpy(document.learn_N), told["input_ids"][0], -100)[1:]
    return F.cross_entropy(logits_1NV[0, :-1], labels_N, ignore_index=-100, reduction="sum")


def packed(documents, rows, seq_len):
    """The batch of these documents, so many in the first row, as arguments of a model without positions."""
    samples = [Sample(d.tokens_N, d.learn_N, d.arrays) for d in documents]
    return pack_batch([samples[:rows], samples[rows:]], seq_len)


def arguments(model, batch):
    tokens_BS, segments_BS, media = (
        torch.from_numpy(batch.tokens_BS),
        torch.from_numpy(batch.segments_BS),
        tensors(batch.media),
    )
    bounds, longest = document_bounds(batch.segments_BS)
    groups_BS = group_images(model.config, tokens_BS, segments_BS)
    return {
        **({} if groups_BS is None else {"group_ids": groups_BS}),
        "input_ids": tokens_BS,
        "position_ids": media_positions(model, tokens_BS, segments_BS, media),
        "cu_seqlens": torch.from_numpy(bounds),
        "max_seqlen": longest,
        # Seconds tell of positions alone, which are made.
        **{name: array for name, array in media.items() if "second" not in name},
    }


@pytest.mark.parametrize(
    ("family", "documents"), CASES + FLAT, ids=lambda value: value if isinstance(value, str) else len(value)
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_packed_row_has_the_loss_and_gradients_of_its_documents_alone(family, documents, attention):
    plain = make_model(family)
    ours = use_attention(copy.deepcopy(plain), attention)
    found = encoded(family, plain, documents)
    expected = sum(loss_alone(plain, document) for document in found)
    batch = packed(found, 2, 400)
    targets = int((batch.labels_BS >= 0).sum())
    got = summed_loss(ours, arguments(ours, batch), torch.from_numpy(batch.labels_BS))
    assert abs(got.item() - expected.item()) / targets < 1e-5
    expected.backward()
    got.backward()
    for (name, a), b in zip(plain.named_parameters(), ours.parameters(), strict=True):
        if a.grad is None:
            assert b.grad is None, name
        else:
            assert (a.grad - b.grad).norm() <= 1e-5 * max(1e-3 * targets, a.grad.norm()), name


def own_positions(model, family, document):
    """(3, N): what the model gives its decoder, told of one document as its processor would."""
    caught = []
    decoder = model.model.language_model
    hook = decoder.register_forward_pre_hook(
        lambda m, a, kwargs: caught.append(kwargs["position_ids"]), with_kwargs=True
    )
    with torch.no_grad():
        model(use_cache=False, **told_alone(family, document))
    hook.remove()
    # Of text alone it says nothing, and the decoder counts.
    return torch.arange(len(document.tokens_N)).expand(3, -1) if caught[0] is None else caught[0][-3:, 0]


@pytest.mark.parametrize(
    ("family", "documents"), CASES, ids=lambda value: value if isinstance(value, str) else len(value)
)
def test_positions_in_packed_rows_are_the_models_own_of_each_document(family, documents):
    model = make_model(family)
    found = encoded(family, model, documents)
    batch = packed(found, 2, 400)
    planes_PBS = arguments(model, batch)["position_ids"]
    assert planes_PBS.shape == (4, *batch.tokens_BS.shape) and planes_PBS.dtype == torch.int64
    assert torch.equal(planes_PBS[0], torch.from_numpy(batch.positions_BS))
    assert not planes_PBS[:, torch.from_numpy(batch.segments_BS) == 0].any()
    rows = [(0, found[:2]), (1, found[2:])]
    for row, group in rows:
        start = 0
        for document in group:
            stop = start + len(document.tokens_N)
            assert torch.equal(planes_PBS[1:, row, start:stop], own_positions(model, family, document))
            start = stop


def test_where_documents_end_is_not_taken_for_where_images_end():
    """Towers have an argument of the same name: rows of as many tokens as there are patches hid it."""
    model = use_attention(make_model("qwen2_vl"), "eager")
    found = encoded("qwen2_vl", model, IMAGES[:1])
    patches = len(found[0].arrays["pixel_values"])
    batch = pack_batch([[Sample(d.tokens_N, d.learn_N, d.arrays) for d in found]], patches)
    groups_BS = torch.zeros(batch.tokens_BS.shape, dtype=torch.int64)
    told = {**arguments(model, batch), "group_ids": groups_BS}
    loss = summed_loss(model, told, torch.from_numpy(batch.labels_BS))
    assert torch.allclose(loss, loss_alone(make_model("qwen2_vl"), found[0]), rtol=1e-6)


def test_positions_that_depend_on_more_are_refused_by_name():
    model = make_model("qwen2_5_omni_thinker")
    config = model.config
    tokens = torch.tensor([[5, config.vision_start_token_id, config.audio_start_token_id, 6]])
    with pytest.raises(ValueError, match=r"row 0: a film begins with its sound \(use_audio_in_video\), which is not"):
        media_positions(model, tokens, torch.ones_like(tokens), {})

    def get_rope_index(input_ids, target_sizes=None, images_per_sample=None):
        raise AssertionError

    model.get_rope_index = get_rope_index
    told = "Thinker.* gives positions by images_per_sample, target_sizes too"
    with pytest.raises(ValueError, match=told):
        media_positions(model, tokens, torch.ones_like(tokens), {})


def test_models_of_one_plane_have_positions_that_restart():
    from shapes import make_config

    from omni_models import build_model

    segments = torch.tensor([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    model = build_model(make_config("llama"), device="meta")
    got = media_positions(model, torch.zeros(2, 6, dtype=torch.int64), segments, {})
    assert got.tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]


def test_media_that_do_not_fit_the_placeholders_of_a_row_are_refused():
    model = make_model("qwen2_vl")
    found = encoded("qwen2_vl", model, IMAGES)
    batch = packed(found, 2, 400)
    tokens_BS, segments_BS, media = (
        torch.from_numpy(batch.tokens_BS),
        torch.from_numpy(batch.segments_BS),
        tensors(batch.media),
    )
    swapped = {**media, "image_grid_thw": media["image_grid_thw"].flip(0)}
    with pytest.raises(
        ValueError, match=r"row 0: a document's image placeholders do not fit the features of its images"
    ):
        media_positions(model, tokens_BS, segments_BS, swapped)
    more = {**media, "image_grid_thw": media["image_grid_thw"].repeat(2, 1)}
    with pytest.raises(ValueError, match=r"no document has placeholders for 3 image\(s\) of the media given"):
        media_positions(model, tokens_BS, segments_BS, more)
    with pytest.raises(ValueError, match=r"row 0: a document's image placeholders do not fit"):
        media_positions(model, tokens_BS, segments_BS, {})
    assert np.array_equal(batch.media["image_grid_thw"], media["image_grid_thw"])
