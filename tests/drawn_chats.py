"""A composition of a user's own in a folder, chats for it in which the assistant draws, and short runs on these."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import omni
import torch
from composed import load_composed, read_composed, write_builtin
from documented import read_documented
from drawn import Draw
from PIL import Image
from place import place
from torch.nn.functional import cross_entropy
from training import SMALL
from transformers import AutoTokenizer

from omni_data import Packing, draw_shape
from omni_mesh import join_world, make_mesh
from omni_models import OmniConfig, OmniModel, build_model, read_config
from omni_parallel.local import local

LATENT = 272
"""The token that stands for latents."""
SHOWN, DRAWN, BOTH, GIVEN, FILED, WORDS = range(6)
"""What a chat has: an image to see, one to draw, both in several turns, latents as numbers or in a file, or text alone.
"""
Metrics = list[dict[str, float]]


def write_composition(folder: Path) -> str:
    """The folder of a model like tiny-omni that makes latents, too: weights, tokenizer, images and codes."""
    write_builtin(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|latent|>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    fields = read_config("tiny-omni").to_dict()
    fields["text_config"]["vocab_size"] = 280
    head = {"path": "omni_models.decoders:FlowHead", "args": {"hidden": 64, "width": 3, "inner": 16}}
    fields["decoders"]["latent"] = {"token_id": LATENT, "head": head, "shape": [3], "dtype": "float32", "weight": 0.5}
    build_model(OmniConfig.from_dict(fields), seed=1).save_pretrained(folder)
    return str(folder)


def picture(i: int) -> np.ndarray:
    return draw_shape(("red", "green", "blue")[i % 3], ("square", "circle")[i % 2], i % 9, (3 * i) % 9)


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def says(*parts: Any) -> dict[str, Any]:
    return user(*parts) | {"role": "assistant"}


def write_chats(
    folder: Path, count: int = 24, kinds: tuple[int, ...] = (SHOWN, DRAWN, BOTH, GIVEN, FILED, WORDS)
) -> str:
    """Chats of these kinds in turn, and their files."""
    folder.mkdir(exist_ok=True)
    records = []
    for i in range(count):
        Image.fromarray(picture(i)).save(folder / f"{i}.png")
        latents = np.random.default_rng(i).standard_normal((2 + i % 3, 3)).astype(np.float32)
        np.save(folder / f"{i}.npy", latents)
        image = {"type": "image", "image": f"{i}.png"}
        again = [user("And now?"), says("So: ", image, f"It is {i}.")]
        messages = {
            SHOWN: [user(image, "What?"), says(f"Thing {i}.")],
            DRAWN: [user(f"Draw {i}"), says(image)],
            BOTH: [user("Is ", image, "it?"), says("No, but ", image), *again],
            GIVEN: [user("Sing"), says("La ", {"type": "latent", "values": latents.tolist()}, "!")],
            FILED: [user("Hum"), says({"type": "latent", "values": f"{i}.npy"})],
            WORDS: [user(f"What is {i}?"), says("A number.")],
        }[kinds[i % len(kinds)]]
        records.append({"messages": messages})
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def asked_in(folder: Path, **changes: Any) -> omni.Config:
    """A run of three steps of four rows of a composition on chats of all kinds."""
    own = {name: changes.pop(name) for name in ("parts", "chat", "freeze_parts", "tower_lr") if name in changes}
    kinds = {"kinds": changes.pop("kinds")} if "kinds" in changes else {}
    run = replace(SMALL, model=write_composition(folder / "model"), packing=Packing("fit", long="error"), seq_len=200)
    run = replace(run, data=(write_chats(folder / "data", **kinds),), virtual_shards=4, out=folder / "run")
    return omni.Config(run=replace(run, **{"steps": 3, "batch": 4, **changes}), **own)


def draw(asked: omni.Config) -> Metrics:
    """The metrics of a run of the app, a row a step."""
    omni.main(asked)
    return read_documented(asked.run.out / "metrics.jsonl")


def shares_of(asked: omni.Config, names: Sequence[str]) -> list[float]:
    """Of each module, the share of its parameters that this rank has."""
    run = omni.decide_media(asked)
    with join_world(device="cpu"):
        model = place(asked.run, run, make_mesh(run.spec, device_type="cpu"))
        params = [list(model.get_submodule(name).parameters()) for name in names]
        return [sum(local(p).numel() for p in each) / sum(p.numel() for p in each) for each in params]


def encoder_of(model: str) -> Draw:
    """What makes samples of records for a model."""
    config = read_config(model)
    assert isinstance(config, OmniConfig)
    name = model if Path(model).is_dir() else "bytes"
    return Draw(load_composed(read_composed(name, config=config), config), 1 << 20)


@torch.no_grad()
def losses_by_hand(asked: omni.Config) -> dict[str, float]:
    """The mean losses of text and of pictures of all chats, of the model as it is in its folder, chat by chat."""
    model, encode = OmniModel.from_pretrained(asked.run.model).eval(), encoder_of(asked.run.model)
    losses: dict[str, list[float]] = {"text": [], "picture": []}
    head = model.decoders["picture"].head
    folder = Path(asked.run.data[0]).parent
    for line in Path(asked.run.data[0]).read_text().splitlines():
        sample = encode(in_folder(json.loads(line), folder))
        tokens_N, arrays = torch.from_numpy(sample.tokens_N).long(), dict(sample.media)
        none = {"picture": np.zeros(0, np.int64), "latent": np.zeros((0, 3), np.float32)}
        told = {name: torch.from_numpy(arrays.pop(f"{name}_targets", empty)) for name, empty in none.items()}
        media = {name: torch.from_numpy(array) for name, array in arrays.items()}
        out = model(tokens_N[None], **media, decoder_inputs=told)
        codes_N = tokens_N == 258
        before_N = codes_N.nonzero().flatten() - 1
        losses["picture"] += cross_entropy(head.out(out.hidden_states[0, before_N]), told["picture"], reduction="none")
        assert sample.learn_N is not None
        text_N = torch.from_numpy(sample.learn_N) & ~codes_N & (tokens_N != LATENT)
        labels_N = tokens_N.where(text_N, -100)[1:]
        each = cross_entropy(out.logits[0, :-1], labels_N, reduction="none")
        losses["text"] += each[labels_N >= 0].tolist()
    return {name: float(sum(each) / len(each)) for name, each in losses.items()}


def in_folder(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The record, as a source gives it whose files are in `folder`."""
    from seen import FOLDER, Folder

    return {**record, FOLDER: Folder(folder)}
