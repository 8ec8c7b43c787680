"""The app trains composed models on chats in which the assistant draws, on any mesh; what it learned is there for who
asks the merged model."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import merge
import numpy as np
import omni
import pytest
import torch
from ask import load_asked
from chats import ChatConfig
from composed import write_builtin
from drawn_chats import (
    BOTH,
    DRAWN,
    SHOWN,
    Metrics,
    asked_in,
    draw,
    encoder_of,
    in_folder,
    losses_by_hand,
    picture,
    says,
    shares_of,
    user,
)
from flags import by_flags
from look import look
from PIL import Image
from ranks import Run, rank_pool
from request import EvalConfig
from request_media import PartsConfig
from starting import run_script

from omni_data import (
    DRAWINGS,
    PLACES,
    Packing,
    attached_of,
    builtin_drawings,
    draw_shape,
    pack_batch,
    read_image,
    read_tokenizer,
)
from omni_data.pictures import is_unasked
from omni_mesh import MeshConfig
from omni_models import OmniConfig, build_model, read_config
from omni_parallel import AdamWConfig

ROOT = Path(__file__).parent.parent
TOWER = "encoders.image.tower"
ONE = MeshConfig(shard=1)
NUMBERS = ("loss", "loss_of_text", "loss_of_picture", "loss_of_latent", "grad_norm")
MESHES = {
    "one row at a time": (ONE, {"micro": 1}),
    "sp 2": (MeshConfig(shard=1, sp=2), {}),
    "shard 2": (MeshConfig(shard=2), {}),
    "a tower on every rank": (MeshConfig(shard=2), {"parts": PartsConfig(replicated=(TOWER,))}),
}


def numbers(metrics: Metrics) -> list[dict[str, float]]:
    return [{name: row[name] for name in NUMBERS if name in row} for row in metrics]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, run: Run) -> tuple[omni.Config, Metrics]:
    """A run of four steps on one rank."""
    asked = asked_in(tmp_path_factory.mktemp("one"), steps=4, mesh=ONE, optim=AdamWConfig(eps=1e-3))
    return asked, run(draw, 1, asked)[0]


def other(asked: omni.Config, out: Path, **changes: Any) -> omni.Config:
    """The run `asked` in another place."""
    own = {name: changes.pop(name) for name in ("parts",) if name in changes}
    return replace(asked, run=replace(asked.run, out=out, **changes), **own)


@pytest.mark.parametrize("name", MESHES)
def test_losses_are_the_same_on_every_mesh(
    name: str, one: tuple[omni.Config, Metrics], run: Run, tmp_path: Path
) -> None:
    (asked, expected), (mesh, changes) = one, MESHES[name]
    found = numbers(run(draw, mesh.shard * mesh.sp, other(asked, tmp_path, mesh=mesh, **changes))[0])
    assert len(found) == 4 and all("loss_of_latent" in row and "loss_of_picture" in row for row in found)
    for row, wanted in zip(found, numbers(expected), strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)
    sums = [row["loss_of_text"] + row["loss_of_picture"] + 0.5 * row["loss_of_latent"] for row in found]
    assert [row["loss"] for row in found] == pytest.approx(sums, rel=1e-5)


def test_a_part_is_whole_on_every_rank_and_all_else_is_not(one: tuple[omni.Config, Metrics], run: Run) -> None:
    here = replace(one[0], parts=PartsConfig(replicated=(TOWER,)))
    names = (f"{TOWER}.encoder.layers.0", "encoders.image.projector", "foundation.model.layers.0", "decoders.picture")
    for rank in run(shares_of, 2, other(here, here.run.out, mesh=MeshConfig(shard=2)), names):
        assert rank == [1.0, 0.5, 0.5, 0.5]


def test_a_stop_and_another_mesh_change_nothing(one: tuple[omni.Config, Metrics], run: Run, tmp_path: Path) -> None:
    asked, whole = one
    split = other(asked, tmp_path / "split")
    run(draw, 1, other(split, split.run.out, stop_after=2))
    cut = other(split, tmp_path / "cut", mesh=MeshConfig(shard=2), parts=PartsConfig(replicated=(TOWER,)))
    shutil.copytree(split.run.out, cut.run.out)
    assert numbers(run(draw, 1, split)[0]) == numbers(whole), "to the bit"
    for row, wanted in zip(numbers(run(draw, 2, cut)[0]), numbers(whole), strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)


def test_losses_of_what_is_held_out_are_those_of_the_model_by_hand(
    one: tuple[omni.Config, Metrics], run: Run, tmp_path: Path
) -> None:
    asked = other(one[0], tmp_path, steps=1, optim=AdamWConfig(lr=1e-12), eval=EvalConfig(data=one[0].run.data))
    wanted = losses_by_hand(asked)
    for mesh in (ONE, MeshConfig(shard=1, sp=2)):
        here = other(asked, tmp_path / str(mesh.sp), mesh=mesh)
        run(draw, mesh.sp, here)
        told = json.loads((here.run.out / "eval.jsonl").read_text())
        assert {name: told[f"loss_of_{name}"] for name in wanted} == pytest.approx(wanted, rel=1e-5)


def test_a_chat_becomes_tokens_and_what_they_stand_for(tmp_path: Path) -> None:
    Image.fromarray(picture(1)).resize((32, 32)).save(tmp_path / "seen.png")
    Image.fromarray(draw_shape("red", "circle", 4, 4)).save(tmp_path / "drawn.png")
    encode = encoder_of("tiny-omni")
    seen, drawn = ({"type": "image", "image": f"{name}.png"} for name in ("seen", "drawn"))
    sample = encode(in_folder({"messages": [user(seen, "Draw"), says("So: ", drawn, "!")]}, tmp_path))
    tokenizer = encode.composed.tokenizer
    text = f"User: {'<|image|>' * 16}Draw\n\nAssistant: So: <|draw|>{'<|code|>' * 16}!<|endoftext|>"
    assert tokenizer.decode(sample.tokens_N) == f"{text}\n\n" and sample.learn_N is not None
    learnt = tokenizer.decode(sample.tokens_N[sample.learn_N])
    assert learnt == f"So: <|draw|>{'<|code|>' * 16}!<|endoftext|>"
    assert sample.media["pixel_values"].shape == (1, 3, 16, 16)
    codes = torch.from_numpy(sample.media["picture_targets"])
    assert np.array_equal(encode.composed.decode("picture", codes), draw_shape("red", "circle", 4, 4))


def test_drawings_of_answers_that_are_not_learnt_are_not_learnt_either(tmp_path: Path) -> None:
    asked = asked_in(tmp_path, kinds=(BOTH,))
    record = in_folder(json.loads(Path(asked.run.data[0]).read_text().splitlines()[0]), tmp_path / "data")
    counts = {}
    for learn in ("assistant", "last"):
        sample = replace(encoder_of(asked.run.model), learn=learn)(record)
        looked = look(pack_batch([[sample]], 200), build_model(read_config(asked.run.model), device="meta"))
        counts[learn] = int((looked.learn_BS & (looked.batch.tokens_BS == 258)).sum())
        assert not np.isin(looked.batch.labels_BS, [257, 258]).any(), "what stands for no text is not learnt as text"
    assert counts == {"assistant": 32, "last": 16}


def test_what_is_frozen_stays_and_what_has_no_learning_rate_does(run: Run, tmp_path: Path) -> None:
    asked = asked_in(tmp_path, kinds=(SHOWN, DRAWN), steps=2, optim=AdamWConfig(max_norm=float("inf")))
    before = build_model(read_config(asked.run.model), device="meta").state_dict().keys()
    losses = {}
    for name, how in {
        "by pattern": {"freeze": (rf"^{TOWER}\.",)},
        "by part": {"freeze_parts": ("tower",), "parts": PartsConfig(replicated=(TOWER,))},
        "still": {"tower_lr": 0.0},
    }.items():
        own = {key: how.pop(key) for key in ("freeze_parts", "tower_lr", "parts") if key in how}
        here = replace(other(asked, tmp_path / name, mesh=MeshConfig(shard=2), **how), **own)
        losses[name] = [row["loss"] for row in run(draw, 2, here)[0]]
        merge.main(merge.Config(run=here.run.out, to=tmp_path / f"{name} merged"))
        weights, started = (weights_of(folder) for folder in (tmp_path / f"{name} merged", Path(asked.run.model)))
        moved = {key for key in before if key in weights and not torch.equal(weights[key], started[key])}
        assert not any(key.startswith(TOWER) for key in moved)
        assert all(any(part in key for key in moved) for part in ("projector", "foundation", "decoders.picture"))
    assert losses["by pattern"] == pytest.approx(losses["by part"], rel=1e-6)
    assert losses["still"] == pytest.approx(losses["by part"], rel=1e-6)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


WRONG = {
    "no such picture": (
        [user("Draw"), says("So: ", {"type": "image", "image": "no.png"})],
        ["chats.jsonl:25: message 1, part 1: ", "no.png: no such file"],
    ),
    "more places than pictures": (
        [user({"type": "image"}, "What?"), says("A cat.")],
        ["chats.jsonl:25: 1 places for images in the messages", "but 0 images beside them"],
    ),
    "a sound": (
        [user({"type": "audio", "audio": "cat.wav"}), says("A cat.")],
        ["chats.jsonl:25: message 0, part 0: a composed model is not given audios here yet"],
    ),
    "a decoder without a target": (
        [user("Sing"), says({"type": "latent"})],
        ["chats.jsonl:25: message 1, part 0: outputs of latent have no values: give them as lists"],
    ),
    "targets of another shape": (
        [user("Sing"), says({"type": "latent", "values": [[1.0, 2.0]]})],
        ["message 1, part 0: values of latent are of shape [1, 2], and have to be of ['any number', 3]"],
    ),
    "no such decoder": (
        [user("Sing"), says({"type": "voice", "values": [1]})],
        ["message 1, part 0: no part of the model takes 'voice' there: there are text, image, latent (of"],
    ),
    "outputs of the user": (
        [user({"type": "latent", "values": [[1.0, 2.0, 3.0]]}), says("La.")],
        ["message 0, part 0: no part of the model takes 'latent' there"],
    ),
    "a placeholder that is spelled": (
        [user("What is <|image|>?"), says("<|code|>")],
        ["message 0, part 0: its text spells <|image|>", "message 1, part 0: its text spells <|code|>"],
    ),
}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> omni.Config:
    return asked_in(tmp_path_factory.mktemp("wrong"))


@pytest.mark.parametrize("name", WRONG)
def test_a_chat_that_cannot_be_drawn_is_named_with_its_part(name: str, wrong: omni.Config) -> None:
    messages, told = WRONG[name]
    path = Path(wrong.run.data[0])
    beside = path.parent / "wrong" / path.name
    beside.parent.mkdir(exist_ok=True)
    beside.write_text(path.read_text() + json.dumps({"messages": messages}) + "\n")
    media = replace(wrong.media, folder=path.parent)
    asked = replace(wrong, media=media, run=replace(wrong.run, data=(), eval=EvalConfig(data=(str(beside),))))
    with pytest.raises(ValueError) as caught:
        omni.decide_media(asked)
    for words in told:
        assert words in by_flags(str(caught.value)), caught.value


def test_models_and_folders_that_do_not_fit_are_refused(wrong: omni.Config, tmp_path: Path) -> None:
    bare = shutil.copytree(wrong.run.model, tmp_path / "bare")
    (bare / "picture.npz").unlink()
    blind = shutil.copytree(wrong.run.model, tmp_path / "blind")
    (blind / "preprocessor_config.json").unlink()
    built_in = tmp_path / "built-in"
    built_in.mkdir()
    write_builtin(built_in)
    plain = read_tokenizer("bytes").save(shutil.copytree(built_in, tmp_path / "plain"))
    for told, changes in {
        "an image is drawn by the assistant, but no decoder of the model has codes of pictures": {"model": str(bare)},
        "has no preprocessor_config.json, but the model encodes images": {"model": str(blind)},
        "the token of latent is 272, which the tokenizer has no spelling of": {"tokenizer": str(built_in)},
        "the placeholder of images is 257, which .*\n.*the token of latent is 272": {"tokenizer": str(plain)},
        "no/where is no folder here": {"tokenizer": "no/where"},
    }.items():
        kinds = replace(wrong.run, data=(write_drawn(wrong, tmp_path),), **changes)
        with pytest.raises(ValueError, match=told):
            omni.decide_media(replace(wrong, run=kinds))
    for told, changes in {
        r"--parts.replicated encoders.image.towr: there is no such module \(did you mean encoders.image.tower\?\)": {
            "parts": PartsConfig(replicated=("encoders.image.towr",))
        },
        "foundation holds the decoder foundation.model": {"parts": PartsConfig(replicated=("foundation",))},
        "--chat.options thinking: the chat template has no such variable": {
            "chat": ChatConfig(options=("thinking=true",))
        },
    }.items():
        with pytest.raises(ValueError, match=told):
            omni.decide_media(replace(wrong, **changes))
    parts = PartsConfig(replicated=(TOWER,))
    assert f"\nwhole     {TOWER} on every rank\n" in omni.decide_media(replace(wrong, parts=parts)).told()


def write_drawn(asked: omni.Config, folder: Path) -> str:
    """One chat in which something is drawn."""
    path = Path(asked.run.data[0])
    (folder / "drawn.jsonl").write_text(path.read_text().splitlines()[DRAWN] + "\n")
    shutil.copy(path.parent / "1.png", folder)
    return str(folder / "drawn.jsonl")


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a merged tiny-omni that learned from the built-in drawings."""
    folder = tmp_path_factory.mktemp("learnt")
    how = {"steps": 400, "warmup": 20, "batch": 8, "seq_len": 256, "save_every": 1000, "dtype": "float32", "mesh": ONE}
    how |= {"optim": AdamWConfig(lr=3e-3, weight_decay=0.0), "packing": Packing("concat"), "out": folder / "run"}
    asked = replace(omni.Config(), run=replace(omni.Config().run, model="tiny-omni", **how))
    with rank_pool() as run:
        losses = run(draw, 1, asked)[0]
    assert losses[-1]["loss"] < 0.2 and losses[0]["loss"] > 5
    merge.main(merge.Config(run=folder / "run", to=folder / "merged"))
    yield folder / "merged"


def test_a_merged_model_answers_in_a_fresh_process(one: tuple[omni.Config, Metrics], tmp_path: Path) -> None:
    """What it says after four steps is no word, but is the same there."""
    merged = tmp_path / "merged"
    merge.main(merge.Config(run=one[0].run.out, to=merged))
    Image.fromarray(draw_shape("red", "circle", 2, 3)).save(tmp_path / "red-circle.png")
    config = read_config(str(merged))
    assert isinstance(config, OmniConfig)
    here = load_asked(merged, config, "cpu")("What is this?", [tmp_path / "red-circle.png"], most=12).text
    words = ("--image", "red-circle.png", "--prompt", "What is this?", "--tokens", "12")
    there = run_script(ROOT / "apps" / "infer.py", str(merged), *words, folder=tmp_path)
    assert (there.returncode, there.stdout) == (0, f"{here}\n"), there
    none = run_script(ROOT / "apps" / "infer.py", str(merged), *words, "--draw", "none.png", folder=tmp_path)
    assert none.returncode and "--draw none.png: the model drew nothing, but answered in words: " in none.stderr


@pytest.mark.thorough
def test_a_merged_model_says_what_it_sees_and_draws_in_a_fresh_process(learnt: Path, tmp_path: Path) -> None:
    Image.fromarray(draw_shape("red", "circle", 2, 3)).save(tmp_path / "red-circle.png")
    asks = [sys.executable, "-W", "error", str(ROOT / "apps" / "infer.py"), str(learnt)]

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*asks, *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240)

    said = ask("--image", "red-circle.png", "--prompt", "What is this?")
    assert said.returncode == 0 and re.fullmatch(r"A red (circle|square|triangle)\.\n", said.stdout), said
    drew = ask("--prompt", "Draw a red circle", "--draw", "out.png")
    assert (drew.returncode, drew.stdout) == (0, "[picture]\n"), drew
    assert np.array_equal(read_image(tmp_path / "out.png"), draw_shape("red", "circle", 4, 4))
    words = ("--image", "red-circle.png", "--prompt", "What is this?", "--draw", "none.png")
    none = run_script(ROOT / "apps" / "infer.py", str(learnt), *words, folder=tmp_path)
    assert none.returncode and "--draw none.png: the model drew nothing, but answered in words: A red" in none.stderr


@pytest.mark.thorough
def test_what_was_held_out_is_seen_and_drawn(learnt: Path, tmp_path: Path) -> None:
    config = read_config(str(learnt))
    assert isinstance(config, OmniConfig)
    ask = load_asked(learnt, config, "cpu")
    unasked = [asked for asked in DRAWINGS if is_unasked(*asked)]
    answers = [ask(f"Draw a {colour} {shape}{place}").pictures for colour, shape, place in unasked]
    wanted = [draw_shape(colour, shape, *PLACES[place]) for colour, shape, place in unasked]
    drawn = sum(len(a) == 1 and np.array_equal(a[0], w) for a, w in zip(answers, wanted, strict=True))
    right, file = [], tmp_path / "shown.bmp"
    for record in builtin_drawings(count=60, seed=5, held_out=True):
        chat, (medium,) = attached_of(record)
        said = chat.messages[1]["content"][-1]
        if said["type"] == "text":
            assert isinstance(medium.blob, bytes)
            file.write_bytes(medium.blob)
            right.append(ask("What is this?", [file], most=20).text == said["text"])
    print(f"held out: {drawn} of {len(unasked)} drawn to the pixel, {sum(right)} of {len(right)} seen")
    assert drawn >= 7 and np.mean(right) >= 0.8
