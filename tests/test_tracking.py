"""What services are told is what the files of a run have, step by step, whatever happened in between; and no service is
a reason for a run to end or to wait."""

import json
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pretrain
import pytest
import tracking
from decide import decide
from documented import documented_names, read_documented
from redact import plain_values
from request import Config, EvalConfig, TrackConfig
from trackers import OPENERS, Tracked, Tracker, tracker_problems
from tracking import EVAL, Feed, flatten
from training import SMALL
from watch import append_row

from omni_ckpt import step_dir
from omni_parallel import AdamWConfig

SECRET = "wordOfNobody"
Steps = dict[int, dict[str, float]]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of four steps whose last checkpoint is lost, which goes on from the second with another learning rate."""
    folder = tmp_path_factory.mktemp("tracked")
    for name, word in (("held", "so"), ("other", "else")):
        text = "".join(json.dumps({"text": f"It is {word}, {i} times. " * 6}) + "\n" for i in range(90))
        (folder / f"{name}.jsonl").write_text(text)
    config = replace(
        SMALL,
        model="tiny-moe",
        seq_len=32,
        batch=4,
        virtual_shards=4,
        steps=6,
        stop_after=4,
        save_every=2,
        data=("builtin", str(folder / "other.jsonl")),
        eval=EvalConfig(data=(str(folder / "held.jsonl"),), every=3, documents=4),
        tracking=TrackConfig(track=("tensorboard", "wandb", "trackio"), track_project="ours"),
        out=folder / "run",
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TRACKIO_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, str(folder / name.lower()))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setattr(sys, "argv", ["pretrain.py", "--api-key", SECRET])
        train(config)
        for path in step_dir(config.out, 4).iterdir():
            path.unlink()
        step_dir(config.out, 4).rmdir()
        train(replace(config, stop_after=None, optim=AdamWConfig(lr=2e-3)))
        yield config.out


def train(config: Config) -> None:
    asked = replace(config, save_to=f"s3://key:{SECRET}@bucket/run")
    pretrain.train(config, decide(config, 1), asked=asked)


def told_by_files(out: Path) -> Steps:
    steps: Steps = {}
    for name, above in (("metrics", ""), ("eval", EVAL)):
        for line in (out / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            assert not {*flatten(row, above)} & {*steps.setdefault(row["step"], {})}, "a step is written once"
            steps[row["step"]] |= flatten(row, above)
    return steps


def told_by_tensorboard(out: Path) -> tuple[Steps, str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(out / "tensorboard")).Reload()
    steps: Steps = {}
    for name in read.Tags()["scalars"]:
        for event in read.Scalars(name):
            assert name not in steps.setdefault(event.step, {}), "a step is told once"
            steps[event.step][name] = event.value
    return steps, read.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()


def told_by_trackio(out: Path) -> tuple[Steps, str]:
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = [one for one in Api().runs("ours") if one.name.startswith(f"{out.name}-")]
    steps: Steps = {}
    for row in SQLiteStorage.get_logs("ours", run.name, run_id=run.id):
        told = {name: value for name, value in row.items() if name not in ("step", "timestamp")}
        assert not {*told} & {*steps.setdefault(row["step"], {})}, "a step is told once"
        steps[row["step"]] |= told
    return steps, json.dumps(run.config)


def told_by_wandb(out: Path) -> tuple[Steps, str]:
    steps: Steps = {}
    settings: dict[str, Any] = {}
    newest = max(out.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    for record in wandb_records(newest):
        settings |= {each.key: json.loads(each.value_json) for each in record.run.config.update}
        if told := {each.nested_key[0]: json.loads(each.value_json) for each in record.history.item}:
            assert record.history.step.num not in steps, "a step is told once"
            steps[record.history.step.num] = {name: told[name] for name in told if not name.startswith("_")}
    return steps, json.dumps(settings)


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a file of Weights & Biases: a log of LevelDB, of blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 < len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # All of a record, or its end.
            yield Record.FromString(whole)
            whole = b""


TOLD: Mapping[str, Callable[[Path], tuple[Steps, str]]] = {
    "tensorboard": told_by_tensorboard,
    "wandb": told_by_wandb,
    "trackio": told_by_trackio,
}


@pytest.mark.parametrize("name", TOLD)
def test_a_service_has_the_rows_of_the_files_each_once(name: str, out: Path) -> None:
    written = told_by_files(out)
    assert [*written] == [1, 2, 3, 4, 5, 6] and f"{EVAL}perplexity" in written[6] and "loss/other" in written[1]
    if name == "tensorboard":
        written = {step: {key: float(np.float32(value)) for key, value in written[step].items()} for step in written}
    assert TOLD[name](out)[0] == written
    assert (out / "tracked" / name).exists()


@pytest.mark.parametrize("name", TOLD)
def test_a_service_has_the_settings_without_secrets(name: str, out: Path) -> None:
    settings = TOLD[name](out)[1]
    assert "tiny-moe" in settings and "s3://***@bucket/run" in settings
    files = [path for folder in (out, out.parent / "trackio_dir") for path in folder.rglob("*") if path.is_file()]
    assert files and not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_rows_have_documented_names(out: Path) -> None:
    assert len(documented_names()) > 25
    for row in [*read_documented(out / "metrics.jsonl"), *read_documented(out / "eval.jsonl")]:
        assert np.isclose(row["perplexity"], np.exp(row["loss"]))


def follow(out: Path, names: tuple[str, ...], first: int, steps: range) -> None:
    """A run of nothing but rows, which goes on after `first`."""
    config = replace(SMALL, out=out, tracking=TrackConfig(track=names))  # pyright: ignore[reportArgumentType]
    how = {"first": first, "chief": True, "allowing": lambda seconds: nullcontext()}
    with tracking.tracking(config, config, **how) as track:
        for step in steps:
            append_row(out / "metrics.jsonl", row := {"step": step, "loss": step / 8})
            track(row, "")


def test_a_service_that_was_left_out_for_a_while_is_told_all_rows(tmp_path: Path) -> None:
    follow(tmp_path, ("tensorboard",), 0, range(1, 3))
    follow(tmp_path, (), 2, range(3, 5))
    assert not (tmp_path / "tracked" / "tensorboard").exists()
    follow(tmp_path, ("tensorboard",), 4, range(5, 6))
    assert told_by_tensorboard(tmp_path)[0] == {step: {"loss": step / 8} for step in range(1, 6)}


def test_other_ranks_tell_nobody(tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path, tracking=TrackConfig(track=("tensorboard",)))
    with tracking.tracking(config, config, first=0, chief=False, allowing=lambda seconds: nullcontext()) as track:
        track({"step": 1, "loss": 1.0}, "")
    assert not [*tmp_path.iterdir()]


def fails(*args: Any) -> Any:
    raise ConnectionError("there is no network")


@pytest.mark.parametrize(
    ("begin", "why"),
    [
        (fails, "ConnectionError: there is no network"),
        (lambda run: Tracker("a", 0, fails, lambda failed: None), "ConnectionError: there is no network"),
        (lambda run: Tracker("a", 0, lambda *row: None, fails), "ConnectionError: there is no network"),
        (lambda run: Event().wait(9), "it did not take all rows in 0 s"),
    ],
    ids=["beginning", "a row", "the end", "no answer"],
)
def test_a_service_that_fails_is_told_once_and_ends_nothing(
    begin: Callable[..., Any],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tracking, "END_S", 0.2 if "in 0 s" in why else 60.0)
    monkeypatch.setattr(tracking, "OPENERS", {"tensorboard": begin})
    follow(tmp_path, ("tensorboard",), 0, range(1, 4))
    told = f"NOT TRACKED by tensorboard from here on: {why}. The run goes on, and {tmp_path} has its rows.\n"
    assert capsys.readouterr().err == told
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert not (tmp_path / "tracked" / "tensorboard").exists()


def test_a_service_that_does_not_keep_up_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "MOST_BEHIND", 3)
    run = Tracked(tmp_path, "ours", "a", {}, 0, tmp_path / "mark")
    go_on = Event()

    def begin(run: Tracked) -> Tracker:
        go_on.wait(9)
        return Tracker("a", 0, lambda *row: None, lambda failed: None)

    feed = Feed("slow", run, begin, {})
    for step in range(5):
        feed.put(step, {})
    feed.end(False)
    feed.wait(0.2)
    go_on.set()
    feed.thread.join(9)
    assert capsys.readouterr().err.count("NOT TRACKED by slow from here on: it is 3 rows behind") == 1
    assert not run.mark.exists()


def test_a_mark_is_there_when_all_rows_are_told_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(tmp_path, (), 0, range(1, 4))
    mark, seen = tmp_path / "tracked" / "tensorboard", dict[int, bool]()
    mark.parent.mkdir()
    mark.write_text("of before")

    def begin(run: Tracked) -> Tracker:
        return Tracker("a", 0, lambda step, values: seen.update({step: mark.exists()}), lambda failed: None)

    monkeypatch.setattr(tracking, "OPENERS", {"tensorboard": begin})
    follow(tmp_path, ("tensorboard",), 3, range(4, 6))
    assert seen == {1: False, 2: False, 3: False, 4: True, 5: True}, "so who is killed at 2 tells all again"
    assert mark.read_text() == "a"


def test_what_is_missing_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    asked = replace(SMALL, out=tmp_path, tracking=TrackConfig(track=("wandb", "trackio")))
    monkeypatch.setattr("trackers.find_spec", lambda name: name != "trackio" or None)
    with pytest.raises(ValueError, match=r"(?s)--track trackio: it is not.*--extra trackio.*WANDB_API_KEY") as refused:
        decide(replace(asked, steps=0), 1)
    assert "--steps 0" in str(refused.value)
    for name, value in (("WANDB_API_KEY", "0" * 40), ("WANDB_MODE", "offline")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not tracker_problems(["wandb"])
    assert len(tracker_problems(["wandb"])) == 1


def test_every_service_that_can_be_named_can_be_begun() -> None:
    assert {*TOLD} == {*OPENERS}
    assert plain_values({"track": [*OPENERS]}) == {"track": [*OPENERS]}
