"""Training on chats with media is plain transformers with its processor, on any mesh, and reads as finetuning does."""

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import infer
import merge
import omni
import pyarrow
import pyarrow.parquet
import pytest
import seen
import torch
from flags import by_flags
from PIL import Image
from processors import load_processor, read_processor
from ranks import Run
from request import EvalConfig, MixConfig
from showing import KINDS, SAYS, asked_in, count_shown, png, show
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageTextToText
from transformers.video_utils import VideoMetadata

from omni_ckpt import latest, stored
from omni_data import Packing, attached_of, fingerprint, read_image, read_tokenizer, read_video
from omni_data.read import decoded
from omni_mesh import MeshConfig
from omni_models import build_model, read_config
from omni_parallel import AdamWConfig

MESHES = {
    "one rank": MeshConfig(shard=1),
    "sp 2": MeshConfig(shard=1, sp=2),
    "shard 2": MeshConfig(shard=2),
}
MIXES = {"all": KINDS, "text alone": ("text",), "one of many": ("many", *["text"] * 11)}


IMAGE = {"type": "image"}
TEXT = {"type": "text"}


def chat(*parts: Any, said: str = "A cat.") -> list[dict[str, Any]]:
    shown: Any = parts[0] if isinstance(parts[0], str) else list(parts)
    return [{"role": "user", "content": shown}, {"role": "assistant", "content": said}]


def ranks_of(mesh: MeshConfig) -> int:
    return mesh.shard * mesh.sp


def plain_loss(asked: omni.Config) -> tuple[float, int]:
    """The mean loss of all chats at the first weights, by transformers and its processor alone."""
    ours = build_model(read_config(asked.run.model), seed=asked.run.seed)
    model = AutoModelForImageTextToText.from_config(ours.config, dtype=torch.float32, attn_implementation="eager")
    model.eval().load_state_dict(ours.state_dict())
    processor = load_processor(read_processor("bytes", template=None, max_pixels=None))
    losses: list[float] = []
    for line in Path(asked.run.data[0]).read_text().splitlines():
        chat, media = attached_of(json.loads(line), folder=Path(asked.run.data[0]).parent)
        text, asks = (
            processor.apply_chat_template(messages, add_generation_prompt=prompt)
            for messages, prompt in ((list(chat.messages), False), (list(chat.messages[:-1]), True))
        )
        images = [Image.fromarray(read_image(each.blob)) for each in media if each.kind == "image"]
        films = [read_video(each.blob, fps=2, most_frames=64)[0] for each in media if each.kind == "video"]
        shown = {"images": images or None, "videos": films or None}
        if films:
            how = [VideoMetadata(total_num_frames=len(f), fps=2.0, frames_indices=list(range(len(f)))) for f in films]
            shown["videos_kwargs"] = {"do_sample_frames": False, "input_data_format": "channels_last"}
            shown["videos_kwargs"] |= {"video_metadata": how}
        told = processor(text=[text], return_tensors="pt", **shown)
        before = processor(text=[asks], return_tensors="pt", **shown)["input_ids"].shape[1]
        with torch.no_grad():
            logits = model(**told, use_cache=False).logits[0, before - 1 : -2]
        losses += cross_entropy(logits, told["input_ids"][0, before:-1], reduction="none").tolist()
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize("mix", MIXES)
def test_the_loss_is_that_of_plain_transformers_on_every_mesh(mix: str, run: Run, tmp_path: Path) -> None:
    asked = asked_in(tmp_path, kinds=MIXES[mix], count=24, optim=AdamWConfig(lr=1e-12), steps=2)
    asked = replace(asked, run=replace(asked.run, eval=EvalConfig(data=asked.run.data)))
    loss, targets = plain_loss(asked)
    first: list[float] = []
    for name, mesh in MESHES.items():
        here = replace(asked, run=replace(asked.run, mesh=mesh, out=tmp_path / name))
        metrics = run(show, ranks_of(mesh), here)[0]
        (told,) = [json.loads(line) for line in (here.run.out / "eval.jsonl").read_text().splitlines()]
        assert (told["loss"], told["targets"]) == (pytest.approx(loss, rel=1e-5), targets), name
        first = first or [row["loss"] for row in metrics]
        assert [row["loss"] for row in metrics] == pytest.approx(first, rel=1e-5), name


def test_each_image_is_decoded_once_and_each_patch_encoded_once(run: Run, tmp_path: Path) -> None:
    asked = asked_in(tmp_path, kinds=("one", "many", "text"), count=18, mesh=MeshConfig(shard=1, sp=2), steps=100)
    asked = replace(asked, run=replace(asked.run, mix=MixConfig(epochs=(1,))))
    ranks = run(count_shown, 2, asked)
    images = 6 * (1 + 3)
    assert [len(rank.decoded) for rank in ranks] == [images, 0], "the first of those that share rows reads them"
    owned, encoded, copies = (
        sum(sum(getattr(rank, name)) for rank in ranks) for name in ("owned", "encoded", "copies")
    )
    assert encoded - copies == owned > 0
    assert all(sum(rank.encoded) - sum(rank.copies) > 0 for rank in ranks), "both encode"
    assert sum(ranks[1].owned) == 0 < sum(ranks[0].owned), "arrays of media are not told to those that share rows"


def test_a_stop_workers_and_another_mesh_change_nothing(run: Run, tmp_path: Path) -> None:
    asked = asked_in(tmp_path, steps=4)
    whole = [row["loss"] for row in run(show, 1, asked)[0]]
    split = replace(asked, run=replace(asked.run, out=tmp_path / "split"))
    run(show, 1, replace(split, run=replace(split.run, stop_after=2, workers=2)))
    cut = replace(split, run=replace(split.run, out=tmp_path / "cut", mesh=MeshConfig(shard=1, sp=2)))
    shutil.copytree(split.run.out, cut.run.out)
    assert [row["loss"] for row in run(show, 1, split)[0]] == whole, "to the bit"
    assert [row["loss"] for row in run(show, 2, cut)[0]] == pytest.approx(whole, rel=1e-5)
    told = r"\(--media.max-pixels left out --media.fps 2.0 .*, now --media.max-pixels left out --media.fps 1.0 "
    with pytest.raises(ValueError, match=told):
        omni.decide_media(replace(split, media=seen.MediaConfig(fps=1.0)))


def test_built_in_pictures_are_learned(run: Run, tmp_path: Path) -> None:
    run_of = replace(omni.Config().run, dtype="float32", mesh=MeshConfig(shard=1), batch=6, out=tmp_path, steps=12)
    run_of = replace(run_of, optim=AdamWConfig(lr=1e-3))
    losses = [row["loss"] for row in run(show, 1, replace(omni.Config(), run=run_of))[0]]
    assert losses[-1] < losses[0] - 1


WRONG = {
    "fewer media than marks": (
        {"messages": chat("<image> and <image>?"), "images": ["cat.png"]},
        ["chats.jsonl:2: 2 places for images in the messages", "but 1 images beside them", "give each place its own"],
    ),
    "more media than marks": (
        {"messages": chat("Nothing."), "images": ["cat.png"]},
        ["0 places for images in the messages", "but 1 images"],
    ),
    "no such file": (
        {"messages": chat(IMAGE | {"image": "no.png"})},
        ["chats.jsonl:2: image: ", "no.png: no such file"],
    ),
    "no image": ({"messages": chat(IMAGE | {"image": "chats.jsonl"})}, ["chats.jsonl: is no image of a format that"]),
    "cut": ({"messages": chat(IMAGE | {"image": "cut.png"})}, ["chats.jsonl:2: image: ", "cut.png: cannot be decoded"]),
    "beyond the limit": (
        {"messages": chat(IMAGE | {"image": "wide.png"})},
        ["wide.png: 100 x 60 pixels are more than --media.most-pixels 5000: scale the image down"],
    ),
    "no encoder": (
        {"messages": chat({"type": "audio", "audio": "cat.wav"})},
        ["chats.jsonl:2: qwen2_5_vl has no encoder of audios, but of images, videos alone: leave the chat out"],
    ),
    "a URL": (
        {"messages": chat({"type": "image_url", "image_url": {"url": "https://host/cat.png"}})},
        ["https://host/cat.png: no URL is read while a run trains", "download it before"],
    ),
    "a mark that is spelled": (
        {"messages": chat(IMAGE | {"image": "cat.png"}, said="<|image_pad|>")},
        ["the template writes 2 image marks for 1 image(s): does a text of the chat spell one?"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_chat_that_cannot_be_shown_is_named_with_what_to_do(name: str, tmp_path: Path) -> None:
    record, told = WRONG[name]
    asked = asked_in(tmp_path, kinds=("one",), count=1, media=seen.MediaConfig(most_pixels=5000))
    with Path(asked.run.data[0]).open("a") as file:
        file.write(json.dumps(record) + "\n")
    (tmp_path / "cat.png").write_bytes(png(0))
    (tmp_path / "cut.png").write_bytes(png(0)[:300])
    (tmp_path / "wide.png").write_bytes(png(0, 60, 100))
    asked = replace(asked, run=replace(asked.run, data=(), eval=EvalConfig(data=asked.run.data)))
    with pytest.raises(ValueError) as caught:
        omni.decide_media(asked)
    for words in told:
        assert words in by_flags(str(caught.value)), caught.value


@pytest.mark.parametrize("how", ["fit", "concat"])
def test_media_are_never_cut(how: Literal["fit", "concat"], run: Run, tmp_path: Path) -> None:
    packing = Packing(how, long="right" if how == "fit" else "split")
    asked = asked_in(tmp_path, kinds=("many", "text"), count=8, seq_len=48, packing=packing)
    with pytest.raises(
        AssertionError, match=r"a document of \d+ tokens with pixel_values and .* cannot be cut: take longer rows"
    ):
        run(show, 1, asked)
    kept = replace(asked, run=replace(asked.run, seq_len=150, steps=2, out=tmp_path / "kept"))
    assert len(run(show, 1, kept)[0]) == 2


def test_models_and_processors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    asked = asked_in(tmp_path, count=4)
    bare = read_tokenizer("bytes").save(tmp_path / "bare")
    wrong = {
        "tiny has no encoder of images, films or sounds: train it on chats of text, by apps/sft.py": {"model": "tiny"},
        "has no processor of images, films or sounds .* --tokenizer": {"tokenizer": str(bare)},
        "for qwen2_5_vl it is token 151655: name the processor that belongs": {"model": "qwen2.5-vl-3b"},
        "--field caption has no meaning": {"field": "caption"},
    }
    for told, changes in wrong.items():
        with pytest.raises(ValueError, match=told):
            omni.decide_media(replace(asked, run=replace(asked.run, **changes)))
    for told, media in {
        "--media.fps 0, --media.max-pixels -1: must be positive": seen.MediaConfig(fps=0, max_pixels=-1),
        "--media.max-pixels 9: .* scales images up to 64 pixels at least": seen.MediaConfig(max_pixels=9),
    }.items():
        with pytest.raises(ValueError, match=told):
            omni.decide_media(replace(asked, media=media))


def test_what_is_merged_is_loaded_by_plain_transformers_and_answers(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = asked_in(tmp_path, kinds=("one",), count=1, steps=24, seq_len=64, optim=AdamWConfig(lr=4e-3))
    run(show, 1, asked)
    merge.main(merge.Config(run=asked.run.out, to=tmp_path / "merged"))
    assert "--image FILE.png" in capsys.readouterr().out
    again = replace(asked, run=replace(asked.run, model=str(tmp_path / "merged"), tokenizer=None, steps=1))
    again = replace(again, run=replace(again.run, out=tmp_path / "again", optim=AdamWConfig(lr=1e-12)))
    assert run(show, 1, again)[0][0]["loss"] < 0.5, "it goes on from what it learned"
    picture = tmp_path / "media" / "0.png"
    infer.main(infer.Config(str(tmp_path / "merged"), prompt="What?", image=(picture,), tokens=12))
    assert SAYS[0] in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no\.png: no such file"):
        infer.main(infer.Config(str(tmp_path / "merged"), image=(tmp_path / "no.png",)))


def weights_of(asked: omni.Config) -> dict[str, torch.Tensor]:
    """Those of the newest checkpoint of a run, as plain transformers has them."""
    to = asked.run.out / "merged"
    merge.main(merge.Config(run=asked.run.out, to=to))
    return AutoModelForImageTextToText.from_pretrained(to).state_dict()


@pytest.mark.parametrize("mesh", ["sp 2", "shard 2"])
def test_a_frozen_tower_stays_as_it_is_as_one_without_a_learning_rate_does(mesh: str, run: Run, tmp_path: Path) -> None:
    # Gradients are not clipped, as towers count in their norm.
    asked = asked_in(tmp_path, count=16, optim=AdamWConfig(max_norm=float("inf")))
    before = build_model(read_config("tiny-vl"), seed=0).state_dict()
    losses = {}
    for name, how in {"frozen": {"freeze_parts": ("tower",)}, "still": {"tower_lr": 0.0}}.items():
        here = replace(asked, run=replace(asked.run, out=tmp_path / name, mesh=MESHES[mesh]), **how)
        losses[name] = [row["loss"] for row in run(show, 2, here)[0]]
        moved = {key for key, tensor in weights_of(here).items() if not torch.equal(tensor, before[key])}
        assert not any(is_in_tower(key) for key in moved)
        assert all(any(part in key for key in moved) for part in ("merger", "language_model"))
        moments = {key for key in stored(latest(here.run.out), prefix="state.optimizer") if ".exp_avg." in f".{key}"}
        assert any(is_in_tower(key) for key in moments) == (name == "still"), "what is frozen has no moments"
    assert losses["frozen"] == pytest.approx(losses["still"], rel=1e-6)
    one = replace(asked, run=replace(asked.run, out=tmp_path / "one"), freeze_parts=("tower",))
    assert [row["loss"] for row in run(show, 1, one)[0]] == pytest.approx(losses["frozen"], rel=1e-5)


def is_in_tower(key: str) -> bool:
    return "visual" in key and "merger" not in key


def test_parts_that_cannot_be_frozen_are_told(tmp_path: Path) -> None:
    asked = asked_in(tmp_path, count=4)
    for told, changes in {
        "nothing is left to train where language, projector, tower are frozen": {
            "freeze_parts": ("tower", "projector", "language")
        },
        "--tower-lr -1 must be at least 0": {"tower_lr": -1.0},
        "towers that are frozen have none": {"tower_lr": 0.1, "freeze_parts": ("tower",)},
    }.items():
        with pytest.raises(ValueError, match=told):
            omni.decide_media(replace(asked, **changes))
    told = omni.decide_media(replace(asked, freeze_parts=("tower",))).told()
    assert "\nfrozen    tower\n" in told


def test_all_kinds_of_files_give_the_same_samples(tmp_path: Path) -> None:
    kind = seen.seen(seen.ChatConfig(), seen.MediaConfig(), "tiny-vl")
    encode = kind.encoder(kind.read_tokenizer("bytes"), None)
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": [TEXT | {"text": "A cat."}]}]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(png(0))
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages, "images": ["in/0.png"]}) + "\n")
    rows = {"messages": [messages], "images": [[{"bytes": png(0), "path": None}]]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in {"0.png": png(0), "0.json": json.dumps({"messages": messages}).encode()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = []
    for name in ("a.jsonl", "a.parquet", "a.tar", "*.jsonl"):
        source: Any = kind.open(str(tmp_path / name))
        found.append(encode(source[0]))
        streamed: Any = kind.open(f"stream:{tmp_path / name}")
        found += [encode(decoded(item)) for item, _ in streamed.read(0, None)]
    assert len(found) == 8
    for sample in found:
        assert sample.tokens_N.tolist() == found[0].tokens_N.tolist()
        assert {name: array.tolist() for name, array in sample.media.items()} == {
            name: array.tolist() for name, array in found[0].media.items()
        }
    moved = shutil.copytree(tmp_path, tmp_path.parent / "moved")
    here, there = (fingerprint(kind.open(str(folder / "a.jsonl"))) for folder in (tmp_path, moved))
    assert here == there, "a source that moved is the same"
    shutil.rmtree(moved)


def test_images_are_scaled_down_here_and_by_the_processor_that_is_kept(tmp_path: Path) -> None:
    asked = asked_in(tmp_path, kinds=("one",), count=2)
    (tmp_path / "media" / "0.png").write_bytes(png(0, 60, 60))
    sizes = []
    for limit in (None, 16 * 16):
        run = omni.decide_media(replace(asked, media=seen.MediaConfig(max_pixels=limit)))
        part = run.parts[0]
        assert part.encode is not None
        sizes.append(int(part.encode(part.source[0]).media["image_grid_thw"].prod()) * 4 * 4)
        kept = load_processor(run.tokenizer)
    assert sizes[1] <= 16 * 16 and sizes[0] > 50 * 50
    assert kept.image_processor.size.longest_edge == 16 * 16
