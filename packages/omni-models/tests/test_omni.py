"""Laws of composed models: what is composed is what a reader would write by hand, and what does not fit is refused."""

from dataclasses import replace
from pathlib import Path

import composing
import pytest
import shapes
import torch
from composing import ALL, AUDIO, IMAGE, PICTURE, WEIGHTS, document, linear
from own_parts import Ears, Guess
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, SiglipVisionModel

from omni_models import (
    DecoderSpec,
    EncoderSpec,
    ModuleSpec,
    OmniConfig,
    OmniModel,
    build_model,
    count_losses,
    describe,
    encoder_kinds,
    fill_weights,
    hf_keys,
    list_media,
    loss_weights,
    mean_loss,
    omni_config,
    read_config,
    save_config,
    summed_losses,
    unsupported,
    use_attention,
    use_experts,
)

FAMILIES = ("qwen3", "qwen3_moe", "qwen2", "gemma2")
"""Families of foundations: plain, with experts, with tied embeddings, and one that changes its logits."""


def grads_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("family", "attend"), [*((f, "eager") for f in FAMILIES), ("qwen3_moe", "sdpa")])
def test_losses_and_every_gradient_are_those_of_a_model_written_by_hand(family: str, attend: str) -> None:
    by_hand = composing.make_model(family)
    # What transformers takes by default forgets the soft cap of Gemma 2 in some versions.
    by_hand.foundation.set_attn_implementation("eager")
    # Gemma 2 scales whatever rows it is given; in that it is alike by hand and here.
    wanted, sums = composing.loss_by_hand(by_hand, ALL)
    wanted.backward()
    model = use_experts(use_attention(composing.make_model(family), attend))
    rows = composing.pack(model.config, ALL, 40)
    inputs, labels_BS = composing.arguments(model.config, rows), torch.from_numpy(rows.labels_BS)
    found = summed_losses(model, inputs, labels_BS)
    assert set(found) == set(sums)
    for name, loss in sums.items():
        assert abs(found[name].item() - loss.item()) < 1e-5 * max(1, loss.item()), name
    counts = count_losses(inputs, labels_BS)
    assert {name: int(count) for name, count in counts.items()} == composing.counts_by_hand(ALL)
    assert loss_weights(model.config) == WEIGHTS
    loss = mean_loss(found, counts, WEIGHTS)
    assert abs(loss.item() - wanted.item()) < 1e-5
    loss.backward()
    theirs = grads_of(by_hand)
    # Keys have a bias that softmax does not see, so that its gradient is what rounding leaves.
    least = 1e-3 * max(grad.norm().item() for grad in theirs.values())
    for name, grad in grads_of(model).items():
        assert (grad - theirs[name]).norm() <= 1e-5 * theirs[name].norm().clamp(min=least), name
    for part in ("encoders.image.tower", "encoders.audio.tower.place", "encoders.video", "decoders.guess"):
        assert max(grad.abs().max() for name, grad in theirs.items() if name.startswith(part)) > 1e-5, part


def test_a_row_without_media_and_targets_gives_decoders_a_loss_of_zero_and_gradients_of_zero() -> None:
    model = composing.make_model("qwen3")
    rows = composing.pack(model.config, [[document(9)]], 12)
    inputs, labels_BS = composing.arguments(model.config, rows), torch.from_numpy(rows.labels_BS)
    sums = summed_losses(model, inputs, labels_BS)
    assert all(sums[name].item() == 0.0 for name in WEIGHTS if name != "text")
    mean_loss(sums, count_losses(inputs, labels_BS), WEIGHTS).backward()
    of_decoders = {name: p.grad for name, p in model.named_parameters() if name.startswith("decoders.")}
    assert all(grad is not None and not grad.any() for grad in of_decoders.values())


def test_it_is_described_and_looked_at_as_any_model() -> None:
    model = composing.make_model()
    facts = describe(model)
    assert (
        facts.model_type == "seed_omni" and facts.head == "foundation.lm_head" and facts.decoder == "foundation.model"
    )
    layers = [f"encoders.image.tower.encoder.layers.{i}" for i in range(2)]
    assert set(layers) < set(facts.blocks) and facts.blocks[-1] == "foundation.model.layers.1"
    assert facts.num_experts == 8 and len(facts.experts) == 2
    # The convolution of the user's ears is along a sound, and no row is behind it.
    assert facts.unsplittable == () and unsupported(use_attention(model, "eager")) == []
    assert encoder_kinds(model) == ("image", "video", "audio")


def test_only_the_kinds_that_it_has_are_offered() -> None:
    for kind, spec in composing.encoders().items():
        model = build_model(omni_config(shapes.make_config("qwen3"), {kind: spec}))
        assert encoder_kinds(model) == (kind,)
    assert encoder_kinds(build_model(omni_config(shapes.make_config("qwen3")))) == ()


def test_media_of_rows_are_taken_apart_by_kind_with_their_places() -> None:
    config = composing.make_config()
    rows = composing.pack(config, ALL, 40)
    media = {name: torch.from_numpy(array) for name, array in rows.arrays.items() if not name.endswith("_targets")}
    shown = list_media(config, torch.from_numpy(rows.tokens_BS), torch.from_numpy(rows.segments_BS), media)
    assert {kind: len(each.places) for kind, each in shown.items()} == {"image": 3, "video": 1, "audio": 1}
    assert [(row, places.tolist()) for row, places in shown["image"].places][:2] == [
        (0, [3, 4, 5, 6]),
        (1, [15, 16, 17, 18]),
    ]


def test_saved_and_read_again_it_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    model = composing.make_model()
    model.save_pretrained(tmp_path / "theirs")
    save_config(model, tmp_path / "ours")
    config = read_config(str(tmp_path / "ours"))
    assert isinstance(config, OmniConfig)
    again = fill_weights(build_model(config, device="meta"), tmp_path / "theirs")
    by_them = OmniModel.from_pretrained(tmp_path / "theirs")
    state = model.state_dict()
    for other in (again, by_them):
        theirs = other.state_dict()
        assert list(theirs) == list(state)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in state.items())
    stored = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = hf_keys(model)(state)
    assert set(ours) == set(stored) and all(torch.equal(ours[name], stored[name]) for name in stored)
    assert any(".experts.3.up_proj" in name for name in stored), "experts have the names of the hub, one by one"


def test_parts_are_exported_as_plain_models(tmp_path: Path) -> None:
    model = composing.make_model()
    model.foundation.save_pretrained(tmp_path / "text")
    model.encoders["image"].tower.save_pretrained(tmp_path / "tower")
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "text", dtype=torch.float32)
    tower = SiglipVisionModel.from_pretrained(tmp_path / "tower", dtype=torch.float32)
    for part, plain in ((model.foundation, text), (model.encoders["image"].tower, tower)):
        assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in part.state_dict().items())


def test_random_weights_depend_on_the_seed_alone_and_own_parameters_are_set_by_their_module() -> None:
    one, same, other = (build_model(composing.make_config(), seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    place = "encoders.audio.tower.place"
    assert one[place].std() > 0.05 and not torch.equal(one[place], other[place])


def test_modules_that_are_handed_over_keep_their_weights() -> None:
    torch.manual_seed(4)
    ears, guess = Ears(), Guess()
    text = AutoModelForCausalLM.from_config(shapes.make_config("qwen3"), dtype=torch.float32)
    kept = [[p.clone() for p in part.parameters()] for part in (text, ears, guess)]
    config = omni_config(
        text.config,
        {"audio": EncoderSpec(AUDIO, ModuleSpec(), linear(16, 32), features=2)},
        {"guess": DecoderSpec(71, ModuleSpec(), dtype="float32", feeds=False)},
    )
    parts = {"foundation": text, "encoders.audio.tower": ears, "decoders.guess.head": guess}
    model = OmniModel(config, parts)
    assert model.foundation is text and model.encoders["audio"].tower is ears
    for part, before in zip(parts.values(), kept, strict=True):
        assert all(map(torch.equal, part.parameters(), before))
    with pytest.raises(ValueError, match=r"pass it in parts=\{'encoders.audio.tower': \.\.\.\}"):
        OmniModel(config, {"foundation": text, "decoders.guess.head": guess})


def test_parts_that_do_not_go_together_are_refused_all_at_once() -> None:
    text, head = shapes.make_config("qwen3"), ModuleSpec("own_parts:Guess")
    tower = EncoderSpec(IMAGE, ModuleSpec("own_parts:Frames"))
    with pytest.raises(ValueError) as refused:
        omni_config(
            text,
            {"images": tower, "audio": replace(tower, token_id=900, features=0)},
            {"text": DecoderSpec(IMAGE, head, weight=-1), "a": DecoderSpec(3, head, begin_id=4)},
        )
    for told in (
        "there is no kind of media 'images' (did you mean image?)",
        "the encoder of audios has the token 900, but the foundation has 80",
        "the encoder of imagess and the decoder text share the token 70",
        "features=0 of audios must be at least 1",
        "weight=-1 of text must be at least 0",
        "a begins after token 4, but count=0",
        "a decoder cannot be called 'text'",
    ):
        assert told in str(refused.value), told


@pytest.mark.parametrize(
    ("head", "parts", "told"),
    [
        (ModuleSpec("own_parts:Gues"), {}, r"own_parts:Gues is no torch.nn.Module: write package.module:Class"),
        (ModuleSpec("composed_of_nothing:Guess"), {}, "composed_of_nothing:Guess cannot be imported"),
        (ModuleSpec("own_parts:Guess", {"hiden": 3}), {}, r"decoders\.a\.head: own_parts:Guess cannot be made of"),
        (ModuleSpec("own_parts:Frames"), {}, "the decoder a, Frames, lacks loss or sample"),
        (ModuleSpec("own_parts:Guess"), {"decoders.a.hed": nn.Linear(1, 1)}, r"did you mean decoders\.a\.head"),
        (ModuleSpec(config={"hidden_size": 3}), {}, "names no model_type: hidden_size"),
    ],
)
def test_a_part_that_cannot_be_made_is_refused_by_name(head: ModuleSpec, parts: dict, told: str) -> None:
    config = omni_config(shapes.make_config("qwen3"), None, {"a": DecoderSpec(3, head, feeds=False)})
    with pytest.raises(ValueError, match=told):
        OmniModel(config, parts)


def test_a_decoder_that_feeds_has_to_embed() -> None:
    config = omni_config(shapes.make_config("qwen3"), None, {"a": DecoderSpec(3, ModuleSpec("own_parts:Guess"))})
    with pytest.raises(ValueError, match=r"the decoder a, Guess, has no embed: add it, or set feeds=False"):
        OmniModel(config)


def test_what_no_part_takes_and_what_a_part_lacks_is_refused_by_name() -> None:
    decoders = composing.decoders()
    model = build_model(
        omni_config(shapes.make_config("qwen3"), {"image": composing.encoders()["image"]}, {"a": decoders["picture"]})
    )
    ids, pixels = torch.tensor([[1, *[IMAGE] * 4, 2, PICTURE]]), torch.zeros(1, 3, 16, 16)
    none = torch.zeros(0, dtype=torch.int64)
    fine = {"decoder_inputs": {"a": torch.tensor([3])}, "decoder_targets": {"a": (none, none, none)}}
    model(ids, pixel_values=pixels, **fine)
    with pytest.raises(ValueError) as refused:
        model(
            ids,
            input_features=torch.zeros(1, 64),
            decoder_inputs={},
            decoder_targets={"aa": ()},
            decoder_samples={"b": ()},
        )
    for told in (
        "input_features came, but there is no encoder of audios: add one, or leave such samples out",
        "decoder_inputs tells nothing of a: every decoder is called on every rank",
        "decoder_targets: there is no decoder 'aa' (did you mean a?)",
        "decoder_targets tells nothing of a",
        "decoder_samples: there is no decoder 'b'",
    ):
        assert told in str(refused.value), told
    with pytest.raises(ValueError, match="4 placeholders stand for images, but 8 came"):
        model(ids, pixel_values=torch.zeros(2, 3, 16, 16), **fine)
    with pytest.raises(ValueError, match="1 placeholders stand for outputs of a, but 2 came"):
        model(ids, pixel_values=pixels, **fine | {"decoder_inputs": {"a": torch.tensor([3, 4])}})
    with pytest.raises(ValueError, match="the decoders a are told nothing: call with what decoder_arguments gives"):
        summed_losses(model, {"input_ids": ids, "pixel_values": pixels}, ids)


def test_a_tower_that_makes_another_number_of_features_is_refused() -> None:
    spec = replace(composing.encoders()["image"], features=5)
    model = build_model(omni_config(shapes.make_config("qwen3"), {"image": spec}))
    with pytest.raises(ValueError, match=r"made 4 features of 1 image\(s\), but features=5"):
        model(torch.tensor([[IMAGE] * 5]), pixel_values=torch.zeros(1, 3, 16, 16))


def test_a_foundation_that_encodes_media_itself_is_refused() -> None:
    import senses

    with pytest.raises(ValueError, match="the foundation Gemma3ForConditionalGeneration encodes images itself"):
        OmniModel(omni_config(senses.make_config("gemma3").text_config), {"foundation": senses.make_model("gemma3")})


def test_towers_of_patches_are_counted_by_their_grids() -> None:
    vision = {"depth": 1, "num_heads": 2, "hidden_size": 32, "embed_dim": 16, "mlp_ratio": 2, "patch_size": 4}
    vision |= {"temporal_patch_size": 2, "spatial_merge_size": 2}
    of = "transformers.models.qwen2_vl.modeling_qwen2_vl:Qwen2VisionTransformerPretrainedModel"
    told = {"pixel_values": "hidden_states", "image_grid_thw": "grid_thw"}
    spec = EncoderSpec(IMAGE, ModuleSpec(of, config=vision), take="pooler_output", arguments=told)
    model = use_attention(build_model(omni_config(shapes.make_config("qwen3"), {"image": spec})), "eager")
    grid = torch.tensor([[1, 4, 2], [1, 2, 2]])
    media = {"pixel_values": torch.randn(12, 96), "image_grid_thw": grid}
    tokens_BS = torch.tensor([[1, IMAGE, IMAGE, 2, IMAGE]])
    shown = list_media(model.config, tokens_BS, torch.ones_like(tokens_BS), media)["image"]
    assert [places.tolist() for _, places in shown.places] == [[1, 2], [4]]
    assert shown.rows == [(8, 1), (4, 1)] and shown.costs[0] > 2 * shown.costs[1] > 0
    assert model(tokens_BS, **media).logits.isfinite().all()
    assert "encoders.image.tower.blocks.0" in describe(model).blocks
