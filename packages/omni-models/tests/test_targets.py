"""Laws of targets: each is measured once, where the hidden state before it is, and read where its token is."""

import composing
import numpy as np
import pytest
from composing import ALL, PICTURE, document
from hypothesis import given
from hypothesis import strategies as st

from omni_models import Routed, is_text, route_targets, sample_problems, split_targets

CONFIG = composing.make_config()
NAMES = ("guess", "latent", "picture", "voice")


def route(rows: composing.Rows, **how) -> dict[str, Routed]:
    _, targets = split_targets(CONFIG, rows.arrays)
    return route_targets(CONFIG, rows.tokens_BS, rows.segments_BS, targets, seed=1, step=3, **how)


@given(
    rows=st.lists(
        st.lists(
            st.lists(
                st.sampled_from([1, 2, 3, "picture", "image", "latent", "guess", "voice"]), min_size=1, max_size=5
            ),
            max_size=3,
        ),
        min_size=1,
        max_size=3,
    ),
    count=st.integers(1, 4),
    extra=st.integers(0, 3),
)
def test_slices_measure_together_what_whole_rows_do(rows, count, extra) -> None:
    docs = [[document(*parts, seed=i) for i, parts in enumerate(row)] for row in rows]
    length = max(1, extra + max(sum(len(doc.tokens_N) for doc in row) for row in docs))
    packed = composing.pack(CONFIG, docs, length)
    whole, size = route(packed), -(-length // count)
    parts = [route(packed, index=index, count=count) for index in range(count)]
    for name in NAMES:
        found = []
        for index, part in enumerate(parts):
            row, place = part[name].places_F // size, part[name].places_F % size + index * size
            found += list(
                zip((row * length + place).tolist(), part[name].targets.tolist(), part[name].keys_F, strict=True)
            )
        wanted = (each.tolist() for each in (whole[name].places_F, whole[name].targets, whole[name].keys_F))
        assert sorted(found) == sorted(zip(*wanted, strict=True))
        # What is read is as many as there are tokens, also of the last one that lengthens a row.
        padded = np.pad(packed.tokens_BS, ((0, 0), (0, size * count - length)), mode="edge")
        for index, part in enumerate(parts):
            own = padded[:, index * size : (index + 1) * size]
            token = getattr(composing, name.upper())
            assert len(part[name].inputs) == (own == token).sum()
            assert part[name].inputs.dtype == whole[name].targets.dtype


def test_what_predicts_a_target_is_the_token_before_it_in_the_same_document() -> None:
    routed = route(composing.pack(CONFIG, ALL, 40))
    assert routed["picture"].places_F.tolist() == [10, 11, 12, 13, 49, 50, 51]
    # The last document begins with an output: it is read, and nothing predicts it.
    assert len(routed["picture"].inputs) == 8 and len(routed["picture"].targets) == 7
    assert routed["guess"].places_F.tolist() == [43, 45]


def test_what_is_not_learnt_is_read_all_the_same() -> None:
    packed = composing.pack(CONFIG, ALL, 40)
    learn_BS = np.ones(packed.tokens_BS.shape, np.bool_)
    learn_BS[0] = False
    routed = route(packed, learn_BS=learn_BS)
    assert len(routed["picture"].inputs) == 8 and len(routed["picture"].targets) == 3
    assert len(routed["voice"].targets) == 0


def test_chance_depends_on_the_row_of_all_ranks() -> None:
    both = route(composing.pack(CONFIG, ALL, 40))
    second = route(composing.pack(CONFIG, ALL[1:], 40), rows_B=np.array([1]))
    assert both["picture"].keys_F[4:].tolist() == second["picture"].keys_F.tolist()
    assert set(route(composing.pack(CONFIG, ALL[1:], 40))["picture"].keys_F).isdisjoint(second["picture"].keys_F)


def test_of_a_decoder_without_tokens_there_is_nothing_of_its_shape_and_kind() -> None:
    routed = route(composing.pack(CONFIG, [[document(3)]], 5))
    assert {name: (each.targets.shape, str(each.targets.dtype)) for name, each in routed.items()} == {
        "guess": ((0,), "float32"),
        "latent": ((0, 3), "float32"),
        "picture": ((0,), "int64"),
        "voice": ((0, 2), "int64"),
    }


def test_text_is_what_is_neither_placeholder_nor_output() -> None:
    assert is_text(CONFIG, document(1, "image", 1, "guess").tokens_N).tolist() == [True, *[False] * 4, True, False]


def test_targets_that_do_not_fit_their_rows_are_refused_all_at_once() -> None:
    packed = composing.pack(CONFIG, ALL, 40)
    targets = {"pictures": np.zeros(3), "voice": np.zeros((2, 3)), "latent": np.zeros((4, 3)), "guess": np.zeros(2)}
    with pytest.raises(ValueError) as refused:
        route_targets(CONFIG, packed.tokens_BS, packed.segments_BS, targets, index=2, count=2)
    for told in (
        "there are targets of 'pictures', but no decoder of that name (did you mean picture?)",
        "8 tokens stand for outputs of picture, but there are no picture_targets: give one for each. Rows with its "
        "tokens: 0, 1.",
        "voice_targets are of shape [3] each, the decoder's of [2]",
        "3 tokens stand for outputs of latent, but latent_targets are 4: give one for each. Rows with its tokens: 0.",
        "index=2 is not a slice of count=2",
    ):
        assert told in str(refused.value), told
    with pytest.raises(ValueError, match=r"no decoder of that name \(did you mean voice\?\)"):
        split_targets(CONFIG, {"voise_targets": np.zeros(1)})


def test_what_is_wrong_with_a_sample_is_told_in_words() -> None:
    whole = document(2, "image", "picture", "voice")
    assert sample_problems(CONFIG, whole.tokens_N, whole.arrays) == []
    arrays = dict(whole.arrays)
    del arrays["picture_targets"]
    arrays |= {"pixel_values": np.zeros((2, 3, 16, 16)), "ghost_targets": np.zeros(1), "guess_targets": np.zeros(1)}
    problems = sample_problems(CONFIG, whole.tokens_N, arrays)
    for told in (
        "4 tokens stand for images, but the tower of seed_omni makes 8 features of 2 image(s) [4, 4]",
        "there are targets of 'ghost', but no decoder of that name; there are guess, latent, picture, voice.",
        "4 tokens stand for outputs of picture, but there are no picture_targets: give one for each.",
        "0 tokens stand for outputs of guess, but guess_targets are 1: give one for each.",
    ):
        assert sum(told in problem for problem in problems) == 1, (told, problems)
    assert len(problems) == 4
    deaf = composing.omni_config(CONFIG.text_config, {}, {"picture": composing.decoders()["picture"]})
    heard = document(1, "audio", "picture")
    assert sample_problems(deaf, heard.tokens_N, heard.arrays) == [
        "it has input_features, but the model has no encoder of audios: add one, or leave such samples out."
    ]
    assert PICTURE in heard.tokens_N
