"""Short runs of the app that trains on chats with media, the data of them, and what is counted while they run."""

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import omni
import place
import pretrain
import rows
import seen
from documented import read_documented
from PIL import Image
from seeing import count_patches
from training import SMALL

from omni_data import Packing

SAYS = ("A cat.", "Two dogs, and no cat.", "Nothing at all.", "It moves.")
KINDS = ("text", "one", "many", "film")
"""What a chat may show: nothing, an image, three, a film."""


def picture(seed: int, height: int = 16, width: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def png(seed: int, height: int = 16, width: int = 24) -> bytes:
    file = BytesIO()
    picture(seed, height, width).save(file, "PNG")
    return file.getvalue()


def write_film(path: Path, seed: int, frames: int = 4) -> str:
    """A GIF of so many frames, two a second."""
    first, *others = [picture(seed + i, 16, 16) for i in range(frames)]
    first.save(path, save_all=True, append_images=others, duration=500, loop=0)
    return path.name


def write_chats(folder: Path, count: int, kinds: tuple[str, ...] = KINDS) -> str:
    """Chats of these kinds in turn, whose media are given in all the ways that there are."""
    (folder / "media").mkdir(parents=True, exist_ok=True)
    records = []
    for i in range(count):
        kind, said = kinds[i % len(kinds)], SAYS[i % len(SAYS)]
        answer = {"role": "assistant", "content": said}
        if kind == "text":
            records.append({"messages": [{"role": "user", "content": f"What is {i}?"}, answer]})
        elif kind == "one":
            (folder / "media" / f"{i}.png").write_bytes(png(i, 12 + 4 * (i % 3)))
            shown = [
                [{"type": "image", "image": f"media/{i}.png"}, {"type": "text", "text": "What?"}],
                [{"type": "image"}, {"type": "text", "text": "Look."}],
            ][i % 2]
            beside = {"images": [f"media/{i}.png"]} if i % 2 else {}
            records.append({"messages": [{"role": "user", "content": shown}, answer], **beside})
        elif kind == "many":
            data = f"data:image/png;base64,{base64.b64encode(png(i, 20, 12)).decode()}"
            (folder / "media" / f"{i}.png").write_bytes(png(i + 1, 8 + i % 9, 30))
            asked = [{"from": "human", "value": "<image>and<image> <image>?"}, {"from": "gpt", "value": said}]
            records.append({"conversations": asked, "images": [data, f"media/{i}.png", data]})
        else:
            name = write_film(folder / "media" / f"{i}.gif", i, 3 + i % 3)
            shown = [{"type": "video", "video": f"media/{name}"}, {"type": "text", "text": "Film?"}]
            records.append({"messages": [{"role": "user", "content": shown}, answer]})
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def asked_in(folder: Path, *, kinds: tuple[str, ...] = KINDS, count: int = 48, **changes: Any) -> omni.Config:
    """A run of three steps of four rows, whose model is as the preset, but smaller."""
    media, chat = changes.pop("media", seen.MediaConfig()), changes.pop("chat", seen.ChatConfig())
    run = replace(SMALL, model="tiny-vl", packing=Packing("fit", long="error"), seq_len=160, steps=3, batch=4)
    run = replace(run, data=(write_chats(folder, count, kinds),), virtual_shards=4, out=folder / "run")
    return omni.Config(run=replace(run, **changes), chat=chat, media=media)


def show(asked: omni.Config) -> list[dict[str, float]]:
    """The metrics of a run of the app, a row a step."""
    omni.main(asked)
    return read_documented(asked.run.out / "metrics.jsonl")


@dataclass(frozen=True, slots=True)
class Counted:
    """What a rank did in a run."""

    metrics: list[dict[str, float]]
    decoded: list[str] = field(default_factory=list)
    """The images that were read for rows to train on."""
    encoded: list[int] = field(default_factory=list)
    """Patches that towers were called with."""
    copies: list[int] = field(default_factory=list)
    """Of these, those of copies that nobody takes."""
    owned: list[int] = field(default_factory=list)
    """Patches of the media of this rank."""


def count_shown(asked: omni.Config) -> Counted:
    """What `show` does, counted."""
    found = Counted([])
    with replaced(seen, "read_image", _noting(found.decoded, seen.read_image)), _counting(found):
        found.metrics.extend(show(asked))
    return found


@contextmanager
def _counting(found: Counted) -> Iterator[None]:
    """Meanwhile, patches are counted, and what was decoded before training began is forgotten."""
    placed, send, read = place.place, rows.send_media, pretrain.read_batches

    def place_and_count(*args: Any) -> Any:
        model = placed(*args)
        patches = count_patches(model)
        found.encoded.append(0)
        model.register_forward_hook(lambda *_: found.encoded.__setitem__(0, sum(patches)))
        return model

    def send_and_count(owned: Mapping[str, Any], device: Any) -> Any:
        media, routes = send(owned, device)
        found.owned.append(sum(medium.rows[0] for own in owned.values() for medium in own.media))
        copied = [m.rows[0] for route in routes.values() if not sum(route.going) for m in route.encodes]
        found.copies.append(sum(copied))
        return media, routes

    def read_anew(*args: Any) -> Any:
        found.decoded.clear()
        return read(*args)

    with (
        replaced(pretrain, "place", place_and_count),
        replaced(rows, "send_media", send_and_count),
        replaced(pretrain, "read_batches", read_anew),
    ):
        yield


def _noting(into: list[str], read: Any) -> Any:
    def read_and_note(blob: Any, **how: Any) -> Any:
        into.append(str(blob)[-60:])
        return read(blob, **how)

    return read_and_note


@contextmanager
def replaced(module: Any, name: str, by: Any) -> Iterator[None]:
    """Meanwhile, `module` calls `by` under that name."""
    was = getattr(module, name)
    setattr(module, name, by)
    try:
        yield
    finally:
        setattr(module, name, was)
