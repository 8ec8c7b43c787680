"""A composed model that learns to see and to draw: pictures of shapes, the words for them, and image tokens.

It reads pictures through a tower and says in words what they show, and draws what words say as codes of patches, in one
row of tokens. What is measured is held out: places of shapes that were not seen, and what was never asked to be drawn.

    uv run tests/drawing.py        half a minute on a core of a CPU
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig

from omni_data import COLOURS, SHAPES, Batch, Sample, document_bounds, draw_shape, pack_batch, synthetic_shapes
from omni_models import (
    DecoderSpec,
    EncoderSpec,
    ModuleSpec,
    OmniModel,
    VQTokenizer,
    build_model,
    count_losses,
    decoder_arguments,
    fit_tokenizer,
    generate,
    loss_weights,
    mean_loss,
    omni_config,
    route_targets,
    split_targets,
    summed_losses,
    use_attention,
)
from omni_parallel import AdamWConfig, clip_scale, grad_norm, init_state, update, warmup_stable_decay

PLACES = {"top left": (0, 0), "top right": (0, 8), "bottom left": (8, 0), "bottom right": (8, 8)}
WORDS = ("<pad>", "<image>", "<code>", "<draw>", "<drawn>", "<end>", "see", "draw", *COLOURS, *SHAPES, *PLACES)
ID = {word: i for i, word in enumerate(WORDS)}
SIZE, PATCH, CODES, HIDDEN = 16, 4, 48, 64
FEATURES = (SIZE // PATCH) ** 2
ASKED = [(c, s, p) for c, s, p in product(COLOURS, SHAPES, PLACES)]
UNASKED = [asked for i, asked in enumerate(ASKED) if i % 6 == (i // 12) % 6]
"""What is never asked for in training; each of its words is, in other company."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """What came of training: shares of answers that are right in every word, or in every pixel."""

    seen: float
    drawn: float
    seconds: float
    losses: list[dict[str, float]]


def make_model(seed: int = 0) -> OmniModel:
    """A tower of transformers and a head of ours around a foundation of transformers: half a million parameters."""
    text = AutoConfig.for_model(
        "qwen3",
        **{"vocab_size": len(WORDS), "hidden_size": HIDDEN, "intermediate_size": 128, "num_hidden_layers": 3},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "max_position_embeddings": 64},
        **{"pad_token_id": None, "bos_token_id": None, "eos_token_id": ID["<end>"]},
    )
    tower = {
        **{"model_type": "siglip_vision_model", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "image_size": SIZE, "patch_size": PATCH, "vision_use_head": False},
    }
    joined = ModuleSpec("torch.nn:Linear", {"in_features": 48, "out_features": HIDDEN})
    head = ModuleSpec("omni_models.decoders:VQHead", {"hidden": HIDDEN, "codes": CODES})
    config = omni_config(
        text,
        {"image": EncoderSpec(ID["<image>"], ModuleSpec(config=tower), joined, features=FEATURES)},
        {"picture": DecoderSpec(ID["<code>"], head, begin_id=ID["<draw>"], count=FEATURES)},
    )
    model = build_model(config, seed=seed)
    assert isinstance(model, OmniModel)
    return use_attention(model, "eager")


def make_tokenizer() -> VQTokenizer:
    """Of what may be asked to be drawn."""
    pictures = np.stack([draw_shape(colour, shape, *PLACES[place]) for colour, shape, place in ASKED])
    return fit_tokenizer(torch.from_numpy(pictures), CODES, PATCH)


def pixels_of(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(1, 3, H, W), as the tower sees it."""
    return (picture.transpose(2, 0, 1)[None] / 127.5 - 1).astype(np.float32)


def seen(colour: str, shape: str, picture: NDArray[np.uint8]) -> Sample:
    """A picture, and the words for it."""
    tokens = [ID["see"], *[ID["<image>"]] * FEATURES, ID[colour], ID[shape], ID["<end>"]]
    tokens_N = np.array(tokens, np.int32)
    return Sample(tokens_N, np.arange(len(tokens)) > FEATURES, {"pixel_values": pixels_of(picture)})


def drawn(colour: str, shape: str, place: str, tokenizer: VQTokenizer) -> Sample:
    """Words, and the picture that they ask for, in codes."""
    picture = draw_shape(colour, shape, *PLACES[place])
    asked = [ID[word] for word in ("draw", colour, shape, place, "<draw>")]
    tokens_N = np.array([*asked, *[ID["<code>"]] * FEATURES, ID["<drawn>"], ID["<end>"]], np.int32)
    codes = tokenizer.encode(torch.from_numpy(picture)[None])[0].numpy()
    return Sample(tokens_N, np.arange(len(tokens_N)) >= 5 + FEATURES, {"picture_targets": codes})


def is_held_out(top: int, left: int) -> bool:
    """Whether shapes at that place are not seen in training: a fifth of all places."""
    return (top + 2 * left) % 5 == 0


def batches(tokenizer: VQTokenizer, steps: int, rows: int) -> list[Batch]:
    """Rows of two pictures to see and one to draw."""
    records = synthetic_shapes(count=4 * steps * rows, size=SIZE, seed=1)
    pictures = (record for record in records if not is_held_out(record["top"], record["left"]))
    asked = [drawn(*words, tokenizer) for words in ASKED if words not in UNASKED]
    order = np.random.default_rng(2).integers(0, len(asked), (steps, rows))
    made = []
    for chosen in order:
        shown = [[next(pictures) for _ in range(2)] for _ in range(rows)]
        documents = [
            [*(seen(r["colour"], r["shape"], r["image"]) for r in pair), asked[i]]
            for pair, i in zip(shown, chosen.tolist(), strict=True)
        ]
        made.append(pack_batch(documents, 3 * FEATURES + 16))
    return made


def learn(steps: int = 400, rows: int = 16) -> Learnt:
    """A model trained from nothing, and what it can do with what it has not seen."""
    began = time.perf_counter()
    model, tokenizer = make_model(), make_tokenizer()
    state = init_state(model, AdamWConfig(lr=3e-3, weight_decay=0.0))
    schedule = warmup_stable_decay(3e-3, warmup=20, decay=steps // 3, total=steps)
    weights, losses = loss_weights(model.config), []
    for step, batch in enumerate(batches(tokenizer, steps, rows)):
        media, targets = split_targets(model.config, batch.media)
        routed = route_targets(model.config, batch.tokens_BS, batch.segments_BS, targets, step=step)
        bounds, longest = document_bounds(batch.segments_BS)
        inputs = {
            "input_ids": torch.from_numpy(batch.tokens_BS),
            "position_ids": torch.from_numpy(batch.positions_BS),
            **{"cu_seqlens": torch.from_numpy(bounds), "max_seqlen": longest},
            **{name: torch.from_numpy(array) for name, array in media.items()},
            **decoder_arguments(routed, torch.device("cpu")),
        }
        labels_BS = torch.from_numpy(batch.labels_BS)
        sums, counts = summed_losses(model, inputs, labels_BS), count_losses(inputs, labels_BS)
        loss = mean_loss(sums, counts, weights)
        loss.backward()
        state = update(state, schedule, scale=clip_scale(grad_norm(model), 1.0))
        losses.append({name: (part / counts[name]).item() for name, part in sums.items()})
    model.eval()
    return Learnt(measure_seeing(model), measure_drawing(model, tokenizer), time.perf_counter() - began, losses)


def measure_seeing(model: OmniModel, count: int = 100) -> float:
    """The share of pictures, of shapes where none was in training, that are told in the right words."""
    records = [r for r in synthetic_shapes(count=20 * count, size=SIZE, seed=7) if is_held_out(r["top"], r["left"])]
    right = 0
    for record in records[:count]:
        asked = torch.tensor([ID["see"], *[ID["<image>"]] * FEATURES])
        pixels = torch.from_numpy(pixels_of(record["image"]))
        made = generate(model, asked, 3, media={"pixel_values": pixels}, eos_id=ID["<end>"], cache=False)
        right += words_of(made.tokens_N[len(asked) :].tolist()) == [record["colour"], record["shape"], "<end>"]
    return right / count


def measure_drawing(model: OmniModel, tokenizer: VQTokenizer) -> float:
    """The share of what was never asked for that is drawn as it should be, every pixel."""
    right = 0
    for colour, shape, place in UNASKED:
        asked = torch.tensor([ID[word] for word in ("draw", colour, shape, place, "<draw>")])
        made = generate(model, asked, FEATURES + 2, eos_id=ID["<end>"], cache=False)
        picture = tokenizer.decode(made.outputs["picture"][None], SIZE)[0].numpy()
        ends = words_of(made.tokens_N[-2:].tolist()) == ["<drawn>", "<end>"]
        right += ends and np.array_equal(picture, draw_shape(colour, shape, *PLACES[place]))
    return right / len(UNASKED)


def words_of(tokens: Sequence[int]) -> list[str]:
    return [WORDS[token] for token in tokens]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rows", type=int, default=16)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = learn(given.steps, given.rows)
    for number in range(0, given.steps, max(1, given.steps // 10)):
        print(number, {name: round(loss, 4) for name, loss in found.losses[number].items()})
    print(f"seen {found.seen:.1%} of 100, drawn {found.drawn:.1%} of {len(UNASKED)}, in {found.seconds:.0f} s")
