"""Tiny composed models for tests, rows for them, and the same model written by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapes
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from omni_models import (
    DecoderSpec,
    EncoderSpec,
    ModuleSpec,
    OmniConfig,
    OmniModel,
    build_model,
    decoder_arguments,
    is_text,
    keys_of,
    normal_of,
    omni_config,
    route_targets,
    split_targets,
    uniform_of,
)

H, CODES, WIDTH, BOOKS = 32, 10, 3, 2
IMAGE, VIDEO, AUDIO, PICTURE, LATENT, VOICE, GUESS, BEGIN = range(70, 78)
"""Tokens: placeholders of media, outputs of decoders, and where an image begins."""
SIGLIP = {
    **{"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "image_size": 16, "patch_size": 8, "vision_use_head": False},
}
WEIGHTS = {"text": 1.0, "picture": 0.5, "latent": 2.0, "voice": 1.5, "guess": 0.25}


def linear(wide: int, out: int) -> ModuleSpec:
    return ModuleSpec("torch.nn:Linear", {"in_features": wide, "out_features": out})


def encoders() -> dict[str, EncoderSpec]:
    return {
        "image": EncoderSpec(IMAGE, ModuleSpec(config=SIGLIP), linear(16, H), features=4),
        "video": EncoderSpec(VIDEO, ModuleSpec("own_parts:Frames"), features=2),
        "audio": EncoderSpec(AUDIO, ModuleSpec("own_parts:Ears"), linear(16, H), features=2),
    }


def decoders() -> dict[str, DecoderSpec]:
    of = "omni_models.decoders"
    return {
        "picture": DecoderSpec(
            PICTURE, ModuleSpec(f"{of}:VQHead", {"hidden": H, "codes": CODES}), 0.5, begin_id=BEGIN, count=4
        ),
        "latent": DecoderSpec(
            *(
                LATENT,
                ModuleSpec(f"{of}:FlowHead", {"hidden": H, "width": WIDTH, "inner": 24}),
                2.0,
                (WIDTH,),
                "float32",
            )
        ),
        "voice": DecoderSpec(
            *(VOICE, ModuleSpec(f"{of}:CodesHead", {"hidden": H, "codebooks": BOOKS, "codes": CODES, "inner": 20})),
            *(1.5, (BOOKS,)),
        ),
        "guess": DecoderSpec(GUESS, ModuleSpec("own_parts:Guess"), 0.25, (), "float32", feeds=False),
    }


def make_config(family: str = "qwen3_moe", **changes: Any) -> OmniConfig:
    """All senses, around a tiny model of `family`."""
    return omni_config(shapes.make_config(family, **changes), encoders(), decoders())


def make_model(family: str = "qwen3_moe", **changes: Any) -> OmniModel:
    """With weights that are not trivial, and that experts are chosen by."""
    model = build_model(make_config(family, **changes), seed=3)
    assert isinstance(model, OmniModel)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn(param.shape, generator=random), alpha=0.1)
    return model.eval()


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """Tokens, and what comes with them: media by argument of the model, and targets."""

    tokens_N: NDArray[np.int32]
    arrays: Mapping[str, NDArray] = field(default_factory=dict)


def document(*parts: Any, seed: int = 0) -> Document:
    """Of a part for each number, which is so many tokens of text, and each name of a medium or a decoder."""
    random = np.random.default_rng(seed)
    tokens: list[int] = []
    arrays: dict[str, list[NDArray]] = {}
    makers: dict[str, tuple[str, int, int, Any]] = {
        "image": ("pixel_values", IMAGE, 4, lambda: random.standard_normal((1, 3, 16, 16), np.float32)),
        "video": ("pixel_values_videos", VIDEO, 2, lambda: random.standard_normal((1, 2, 4, 4), np.float32)),
        "audio": ("input_features", AUDIO, 2, lambda: random.standard_normal((1, 64), np.float32)),
        "picture": ("picture_targets", PICTURE, 4, lambda: random.integers(0, CODES, 4)),
        "latent": ("latent_targets", LATENT, 3, lambda: random.standard_normal((3, WIDTH), np.float32)),
        "voice": ("voice_targets", VOICE, 2, lambda: random.integers(0, CODES, (2, BOOKS))),
        "guess": ("guess_targets", GUESS, 1, lambda: random.standard_normal(1, np.float32)),
    }
    for part in parts:
        if isinstance(part, int):
            tokens += random.integers(1, 60, part).tolist()
            continue
        name, token, count, make = makers[part]
        tokens += [token] * count
        arrays.setdefault(name, []).append(make())
    joined = {name: np.concatenate(each) for name, each in arrays.items()}
    return Document(np.array(tokens, np.int32), joined)


def hidden_by_hand(model: OmniModel, doc: Document) -> tuple[Tensor, Tensor]:
    """Logits (N, V) and hidden states (N, H) of one document alone, as a reader of the idea would write it."""
    tokens_N = torch.from_numpy(doc.tokens_N).long()
    text, parts, heads = model.foundation, model.encoders, model.decoders
    rows = list(text.get_input_embeddings()(tokens_N))
    arrays = {name: torch.from_numpy(array) for name, array in doc.arrays.items()}

    def fill(token: int, features: Tensor) -> None:
        for place, feature in zip((tokens_N == token).nonzero().flatten().tolist(), features, strict=True):
            rows[place] = feature

    if "pixel_values" in arrays:
        seen = parts["image"].tower(arrays["pixel_values"]).last_hidden_state
        fill(IMAGE, parts["image"].projector(seen).reshape(-1, H))
    if "pixel_values_videos" in arrays:
        fill(VIDEO, parts["video"].tower(arrays["pixel_values_videos"]).reshape(-1, H))
    if "input_features" in arrays:
        fill(AUDIO, parts["audio"].projector(parts["audio"].tower(arrays["input_features"])).reshape(-1, H))
    if "picture_targets" in arrays:
        fill(PICTURE, heads["picture"].head.codes.weight[arrays["picture_targets"]])
    if "latent_targets" in arrays:
        fill(LATENT, heads["latent"].head.latents(arrays["latent_targets"]))
    if "voice_targets" in arrays:
        table = heads["voice"].head.codes.weight.view(BOOKS, CODES, H)
        fill(VOICE, sum(table[q][arrays["voice_targets"][:, q]] for q in range(BOOKS)))
    embeds = torch.stack(rows)[None]
    return text(inputs_embeds=embeds).logits[0], text.model(inputs_embeds=embeds).last_hidden_state[0]


def losses_by_hand(model: OmniModel, doc: Document, row: int, start: int, seed: int, step: int) -> dict[str, Tensor]:
    """Summed losses of a document that begins at `start` of `row`, by the formulas."""
    logits, hidden = hidden_by_hand(model, doc)
    tokens = doc.tokens_N
    labels = torch.from_numpy(np.where(is_text(model.config, tokens), tokens, -100)).long()
    losses = {"text": F.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")}

    def before(token: int, name: str) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
        places = np.flatnonzero(tokens == token)
        learnt = places > 0
        return (
            hidden[places[learnt] - 1],
            torch.from_numpy(doc.arrays[name])[torch.from_numpy(learnt)],
            places[learnt] - 1,
        )

    heads = {name: part.head for name, part in model.decoders.items()}
    if "picture_targets" in doc.arrays:
        h, codes, _ = before(PICTURE, "picture_targets")
        losses["picture"] = -heads["picture"].out(h).log_softmax(-1).gather(1, codes[:, None]).sum()
    if "voice_targets" in doc.arrays:
        h, codes, _ = before(VOICE, "voice_targets")
        logp = heads["voice"].out(h).view(-1, BOOKS, CODES).log_softmax(-1)
        losses["voice"] = -logp.gather(2, codes[..., None]).sum()
    if "latent_targets" in doc.arrays:
        h, latents, places = before(LATENT, "latent_targets")
        keys = torch.from_numpy(keys_of(seed, step, np.full(len(places), row), places + start))
        noise, time = normal_of(keys, WIDTH), uniform_of(~keys, 1)
        speed = heads["latent"].velocity(h, noise + time * (latents - noise), time)
        losses["latent"] = (speed - latents + noise).pow(2).mean(1).sum()
    if "guess_targets" in doc.arrays:
        h, numbers, _ = before(GUESS, "guess_targets")
        losses["guess"] = (heads["guess"].out(h)[:, 0] - numbers).abs().sum()
    return losses


def counts_by_hand(rows: Sequence[Sequence[Document]]) -> dict[str, int]:
    """How many targets these rows have of each kind."""
    tokens = {"picture": PICTURE, "latent": LATENT, "voice": VOICE, "guess": GUESS}
    counts = dict.fromkeys(("text", *tokens), 0)
    for doc in (doc for row in rows for doc in row):
        counts["text"] += int((doc.tokens_N[1:] < 70).sum()) + int((doc.tokens_N[1:] == BEGIN).sum())
        for name, token in tokens.items():
            counts[name] += int((doc.tokens_N[1:] == token).sum())
    return counts


def loss_by_hand(
    model: OmniModel, rows: Sequence[Sequence[Document]], seed: int = 5, step: int = 2
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted mean loss of all rows, and the sums that it is made of."""
    counts = counts_by_hand(rows)
    sums: dict[str, Tensor] = {}
    for row, docs in enumerate(rows):
        start = 0
        for doc in docs:
            for name, loss in losses_by_hand(model, doc, row, start, seed, step).items():
                sums[name] = sums.get(name, torch.zeros(())) + loss
            start += len(doc.tokens_N)
    return torch.stack([WEIGHTS[name] * loss / counts[name] for name, loss in sums.items()]).sum(), sums


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Packed rows, on the host."""

    tokens_BS: NDArray[np.int64]
    segments_BS: NDArray[np.int64]
    labels_BS: NDArray[np.int64]
    positions_BS: NDArray[np.int64]
    arrays: Mapping[str, NDArray]
    """Media and targets, joined in the order of the rows."""


def pack(config: OmniConfig, rows: Sequence[Sequence[Document]], seq_len: int) -> Rows:
    """Documents end to end; text is learnt."""
    tokens, segments, labels, positions = (np.full((len(rows), seq_len), fill) for fill in (0, 0, -100, 0))
    arrays: dict[str, list[NDArray]] = {}
    for row, docs in enumerate(rows):
        start = 0
        for number, doc in enumerate(docs, 1):
            own = slice(start, start + len(doc.tokens_N))
            tokens[row, own], segments[row, own] = doc.tokens_N, number
            positions[row, own] = np.arange(len(doc.tokens_N))
            learnt = np.where(is_text(config, doc.tokens_N), doc.tokens_N, -100)
            labels[row, start : own.stop - 1] = learnt[1:]
            for name, array in doc.arrays.items():
                arrays.setdefault(name, []).append(array)
            start = own.stop
    joined = {name: np.concatenate(each) for name, each in arrays.items()}
    return Rows(tokens, segments, labels, positions, joined)


def arguments(config: OmniConfig, rows: Rows, **how: Any) -> dict[str, Any]:
    """What a composed model is called with on one rank; `how` is for `route_targets`."""
    media, targets = split_targets(config, rows.arrays)
    routed = route_targets(config, rows.tokens_BS, rows.segments_BS, targets, **({"seed": 5, "step": 2} | how))
    return {
        "input_ids": torch.from_numpy(rows.tokens_BS),
        "position_ids": torch.from_numpy(rows.positions_BS),
        **{name: torch.from_numpy(array) for name, array in media.items()},
        **decoder_arguments(routed, torch.device("cpu")),
    }


ALL = (
    (document(3, "image", 4, "picture", 2, seed=1), document(2, "audio", 1, "voice", "latent", 3, seed=2)),
    (document("video", 2, "guess", 1, "guess", 2, seed=3), document("picture", 2, "image", "image", 2, seed=4)),
)
"""Two rows with everything; one document begins with an output, which nothing predicts."""
