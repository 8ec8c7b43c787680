"""Laws of the data of a run: mixes, limits, workers and packings change nothing but what they say."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import room
from decide import decide
from request import Config, EvalConfig, MixConfig
from sharing import fail_to_read, train_and_count
from training import SMALL, train

from omni_data import Packing
from omni_data.fingerprint import spread
from omni_mesh import MeshConfig

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "runs",
    "away",
    "from",
    "it",
    "all",
    "day",
    "long",
]


def write(path: Path, count: int, *, start: int = 0) -> str:
    """A file of `count` documents of different lengths."""
    texts = [" ".join(WORDS[(start + i + j) % len(WORDS)] for j in range(3 + 7 * i % 23)) for i in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def config_in(folder: Path, **changes: object) -> Config:
    found = (write(folder / "web.jsonl", 300), write(folder / "code.jsonl", 200, start=5))
    config = replace(SMALL, data=found, mix=MixConfig(weights=("0.7", "1@0,3@3000")), steps=6, out=folder / "run")
    return replace(config, **changes)


def numbers(rows: list[dict], *names: str) -> list[list[float]]:
    return [[row.get(name, 0.0) for name in names] for row in rows]


def test_a_mix_has_the_same_losses_by_source_on_any_ranks(run, tmp_path: Path) -> None:
    config = config_in(tmp_path)
    names = ("loss", "grad_norm", "loss/web", "loss/code")
    whole = run(train, 1, config)[0]
    parts = run(train, 2, replace(config, mesh=MeshConfig(shard=2), micro=2, out=tmp_path / "two"))[0]
    sliced = run(train, 2, replace(config, mesh=MeshConfig(shard=1, sp=2), out=tmp_path / "sp"))[0]
    for rows in (parts, sliced):
        for one, other in zip(numbers(whole, *names), numbers(rows, *names), strict=True):
            assert other == pytest.approx(one, rel=1e-5)
    for row in whole:
        low, high = sorted(row[name] for name in names[2:])
        assert low <= row["loss"] <= high and low < high


def test_workers_change_no_bit(run, tmp_path: Path) -> None:
    config = config_in(tmp_path)
    alone = run(train, 1, config)[0]
    helped = run(train, 1, replace(config, workers=2, out=tmp_path / "helped"))[0]
    assert numbers(helped, "loss", "grad_norm") == numbers(alone, "loss", "grad_norm")


def test_ranks_that_share_rows_have_one_of_them_read_them(run, tmp_path: Path) -> None:
    config = config_in(tmp_path, steps=4)
    (alone, _), *_ = run(train_and_count, 1, config)
    config = replace(config, mesh=MeshConfig(shard=2, sp=2), micro=3, workers=1, out=tmp_path / "shared")
    ranks = run(train_and_count, 4, config)
    assert [made > 0 for _, made in ranks] == [True, False, True, False]
    for one, other in zip(numbers(alone, "loss", "fill"), numbers(ranks[0][0], "loss", "fill"), strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    split = replace(config, out=tmp_path / "split")
    run(train_and_count, 4, replace(split, stop_after=2))
    assert numbers(run(train_and_count, 4, split)[0][0], "loss") == numbers(ranks[0][0], "loss")


def test_what_is_wrong_with_shared_rows_is_known_to_all_that_share_them(run, tmp_path: Path) -> None:
    path = tmp_path / "web.jsonl"
    write(path, 100)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:50], '{"text": 3}', *lines[50:]]) + "\n")
    config = replace(SMALL, data=(str(path),), steps=50, out=tmp_path / "run", mesh=MeshConfig(shard=1, sp=2))
    for told in run(fail_to_read, 2, config):
        assert "web.jsonl:51: field 'text' holds 3 (int)" in told


@pytest.mark.parametrize("ranks", [1, 2])
def test_streams_have_the_rows_of_any_ranks_and_go_on(run, tmp_path: Path, ranks: int) -> None:
    config = config_in(tmp_path, data=(f"stream:{write(tmp_path / 'web.jsonl', 300)}",), mix=MixConfig())
    whole = run(train, 1, replace(config, out=tmp_path / "whole"))[0]
    config = replace(config, mesh=MeshConfig(shard=ranks))
    run(train, ranks, replace(config, stop_after=3))
    assert numbers(run(train, ranks, config)[0], "targets") == numbers(whole, "targets")
    for one, other in zip(whole, run(train, ranks, config)[0], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


@pytest.mark.parametrize("how", ["fit", "single"])
def test_packed_otherwise_a_run_stopped_and_continued_is_the_unbroken_one(run, tmp_path: Path, how) -> None:
    config = config_in(tmp_path, packing=Packing(how, long="right"))
    unbroken = run(train, 1, replace(config, out=tmp_path / "unbroken"))[0]
    run(train, 1, replace(config, stop_after=2))
    rest = run(train, 2, replace(config, mesh=MeshConfig(shard=2), stop_after=4))[0]
    rest = run(train, 1, config)[0]
    assert [row["step"] for row in rest] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(numbers(unbroken, "loss", "fill"), numbers(rest, "loss", "fill"), strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    assert unbroken[0]["documents_cut"] > 0
    told = rf"\(--packing.how {how}, now concat; --packing.long right, now split\)"
    with pytest.raises(ValueError, match=told) as caught:
        decide(replace(config, packing=Packing()), 1)
    assert "--seq-len" not in str(caught.value)
    with pytest.raises(ValueError, match=r"\(--packing.max-len left out, now 50\)"):
        decide(replace(config, packing=replace(config.packing, max_len=50)), 1)
    with pytest.raises(ValueError, match=r"\(--seq-len 64, now 128\)"):
        decide(replace(config, seq_len=128), 1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_data_that_ends_ends_the_run_with_every_document_read(run, tmp_path: Path, ranks) -> None:
    config = config_in(tmp_path, mix=MixConfig(epochs=(1, 2), until="all"), steps=1000)
    rows = run(train, ranks, replace(config, mesh=MeshConfig(shard=ranks)))[0]
    texts = [json.loads(line)["text"] for path in config.data for line in Path(path).read_text().splitlines()]
    tokens = sum(len(text.encode()) for text in texts[:300]) + 2 * sum(len(text.encode()) for text in texts[300:])
    # A document of n bytes and its end has n targets, fewer one at each cut between rows.
    cuts = tokens - sum(row["targets"] for row in rows)
    assert 0 <= cuts <= len(rows) * 12
    assert rows[-1]["fill"] < 1
    assert list((tmp_path / "run").glob("step-*"))


def test_a_source_joins_a_run_only_where_that_is_said(run, tmp_path: Path) -> None:
    config = config_in(tmp_path, stop_after=2)
    more = write(tmp_path / "more.jsonl", 100, start=9)
    run(train, 1, config)
    joined = replace(config, data=(*config.data, more), stop_after=4, mix=MixConfig())
    with pytest.raises(ValueError, match=r"Sources may join or leave with --mix.changed"):
        decide(joined, 1)
    Path(config.data[0]).write_text('{"text": "another"}\n')
    with pytest.raises(ValueError, match=rf"other data \(--data {' '.join(config.data)} has other content now\)"):
        decide(config, 1)
    write(Path(config.data[0]), 300)
    changed = replace(joined, mix=MixConfig(changed=True))
    told = decide(changed, 1).told(tmp_path)
    assert f"sources   join {more}; go on {', '.join(config.data)}" in told
    rows = run(train, 1, changed)[0]
    assert ["loss/more" in row for row in rows] == [False, False, True, True]
    left = replace(changed, data=(more, config.data[0]), stop_after=5)
    assert f"sources   leave {config.data[1]}; go on {more}, {config.data[0]}" in decide(left, 1).told(tmp_path)
    run(train, 1, left)
    again = decide(replace(left, data=(config.data[1], more)), 1).told(tmp_path)
    assert f"sources   leave {config.data[0]}; go on {config.data[1]}, {more}" in again, "where it stood"


def test_a_run_goes_on_with_its_sources_in_another_order(run, tmp_path: Path) -> None:
    config = config_in(tmp_path, steps=4)
    whole = run(train, 1, replace(config, out=tmp_path / "whole"))[0]
    run(train, 1, replace(config, stop_after=2))
    turned = replace(config, data=config.data[::-1], mix=MixConfig(weights=config.mix.weights[::-1]))
    assert "sources   " not in decide(turned, 1).told(tmp_path)
    assert numbers(run(train, 1, turned)[0], "loss") == numbers(whole, "loss")


def write_texts(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_a_source_joins_also_where_a_rank_has_nothing_left_to_read(run, tmp_path: Path) -> None:
    first = write_texts(tmp_path / "first.jsonl", ["long " * 400, "short"])
    second = write_texts(tmp_path / "second.jsonl", ["another " * 20] * 40)
    config = replace(SMALL, data=(first,), mix=MixConfig(epochs=(1,)), virtual_shards=2, batch=2, shuffle=False)
    config = replace(config, mesh=MeshConfig(shard=2), steps=9, stop_after=3, out=tmp_path / "run")
    run(train, 2, config)
    mix = MixConfig(epochs=(1, 1), changed=True)
    rows = run(train, 2, replace(config, data=(first, second), mix=mix, stop_after=8))[0]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert any("loss/second" in row for row in rows)


ONE_A_ROW = replace(SMALL, packing=Packing("single", long="drop"), mix=MixConfig(epochs=(1,)), shuffle=False, steps=99)


@pytest.mark.parametrize("ranks", [1, 2])
def test_data_of_which_nothing_is_left_is_an_error_of_all_ranks(run, tmp_path: Path, ranks: int) -> None:
    data = (write_texts(tmp_path / "long.jsonl", ["long " * 40] * 30),)
    config = replace(ONE_A_ROW, data=data, mesh=MeshConfig(shard=ranks), out=tmp_path / "run")
    with pytest.raises(AssertionError, match=r"none of the documents can be used, of \d+ that were read: \d+ are"):
        run(train, ranks, config)
    some = (write_texts(tmp_path / "one.jsonl", ["long " * 40] * 29 + ["short"]),)
    assert len(run(train, ranks, replace(config, data=some))[0]) == 1, "also where a rank has none of it"


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_wrong_with_data_ends_a_run_where_it_is_needed_and_not_before(run, tmp_path: Path, ranks: int) -> None:
    path = tmp_path / "web.jsonl"
    write_texts(path, ["a row " * 10 + "..."] * 1200)
    lines = path.read_text().splitlines()
    # In the fourth step, and not looked at when the source is opened.
    bad = next(i for i in range(36, 48) if i not in spread(1200))
    path.write_text("\n".join([*lines[:bad], '{"text": 3}', *lines[bad + 1 :]]))
    config = replace(ONE_A_ROW, data=(str(path),), mesh=MeshConfig(shard=ranks), out=tmp_path / "run")
    config = replace(config, packing=Packing("concat"))
    with pytest.raises(AssertionError, match=rf"ValueError: .*web.jsonl:{bad + 1}: field 'text' holds 3 \(int\)"):
        run(train, ranks, config)
    assert [row["step"] for row in read_rows(config.out)] == [1, 2, 3]
    rows = run(train, ranks, replace(config, stop_after=3, out=tmp_path / "other"))[0]
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_what_is_read_after_the_last_row_is_counted(run, tmp_path: Path) -> None:
    data = (write_texts(tmp_path / "web.jsonl", ["text"] * 24 + ["long " * 40] * 7),)
    # Virtual shards that have nothing but long ones come after the last row.
    config = replace(ONE_A_ROW, data=data, virtual_shards=32, mesh=MeshConfig(shard=2), out=tmp_path / "run")
    rows = run(train, 2, config)[0]
    assert [row.get("documents_dropped", 0) for row in rows][-1] == 7 and len(rows) == 2


def read_rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_bad_documents_are_left_out_up_to_the_limit(run, tmp_path: Path) -> None:
    path = tmp_path / "web.jsonl"
    write(path, 100)
    path.write_text(path.read_text().replace("\n", '\n{"text": 3}\n', 3))
    config = replace(SMALL, data=(str(path),), steps=8, out=tmp_path / "run")
    assert run(train, 2, replace(config, max_bad=100, mesh=MeshConfig(shard=2)))[0][-1]["documents_bad"] >= 3
    with pytest.raises(AssertionError, match=r"web.jsonl:\d+: field 'text' holds 3 \(int\)"):
        run(train, 1, replace(config, out=tmp_path / "other"))


def test_the_first_documents_that_are_left_out_are_told_when_they_are_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "web.jsonl"
    write(path, 100)
    path.write_text(path.read_text().replace("\n", '\n{"text": 3}\n', 5))
    config = replace(SMALL, data=(str(path),), max_bad=9, out=tmp_path / "run", packing=Packing("fit"))
    rows = train(replace(config, mix=MixConfig(epochs=(1,)), steps=99))
    out = capsys.readouterr().out
    assert "go on      the data are through: the same command with --mix.epochs 2\n" in out
    told = [line for line in out.splitlines() if "left out" in line]
    assert rows[-1]["documents_bad"] >= 5 and len(told) == 4
    for i, line in enumerate(told[:3], 1):
        assert re.fullmatch(rf"left out, {i} of --max-bad 9: .*web.jsonl:\d+: field 'text' holds 3 \(int\).*", line)
    assert told[3] == "Others that are left out on this rank are counted only, as documents_bad."


def test_all_that_is_wrong_with_a_mix_is_told_at_once(tmp_path: Path) -> None:
    config = config_in(tmp_path, mix=MixConfig(weights=("1",), epochs=(1, 2, 3)), max_bad=-1)
    with pytest.raises(ValueError) as caught:
        decide(config, 1)
    for told in (
        "mix.weights has 1 values for 2 sources",
        "mix.epochs has 3 values",
        "--max-bad -1 must be at least 0",
    ):
        assert told in str(caught.value)


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_document_is_read_however_unlike_they_are(run, tmp_path: Path, ranks: int) -> None:
    texts = ["ab" * (700 if i == 100 else 3) for i in range(240)]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = replace(SMALL, data=(str(tmp_path / "web.jsonl"),), mix=MixConfig(epochs=(1,)), virtual_shards=240)
    config = replace(config, mesh=MeshConfig(shard=ranks), steps=2000, out=tmp_path / "run")
    rows = run(train, ranks, config)[0]
    targets = sum(row["targets"] for row in rows)
    assert sum(map(len, texts)) - 1400 // 64 - 1 <= targets <= sum(map(len, texts))
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "no step is empty"
    assert [row["tokens"] for row in rows] == [row["step"] * rows[0]["tokens"] for row in rows]
    # There is nothing left to train.
    assert run(train, ranks, config)[0] == rows
    assert [path.name for path in sorted((tmp_path / "run").glob("step-*"))] == [f"step-{len(rows):08d}"]


def test_what_is_wrong_with_data_is_told_by_name_before_anything_starts(tmp_path: Path) -> None:
    path = write(tmp_path / "web.jsonl", 30)
    (tmp_path / "ids.jsonl").write_text('{"text": [5, 900]}\n')
    config = replace(SMALL, data=(path, path), eval=EvalConfig(data=(path, path)), out=tmp_path / "run")
    with pytest.raises(ValueError) as caught:
        decide(config, 1)
    assert f"- '{path}' is in the mix twice" in str(caught.value)
    assert f"eval.data: '{path}' is in the mix twice" in str(caught.value)
    with pytest.raises(ValueError, match=f"--data names {path} twice, whole and after stream:"):
        decide(replace(config, data=(f"stream:{path}", path), eval=EvalConfig()), 1)
    with pytest.raises(ValueError, match=r"ids.jsonl:1: token id 900 is beyond the vocabulary of \d+ tokens"):
        decide(replace(config, data=(str(tmp_path / "ids.jsonl"),), eval=EvalConfig()), 1)
    with pytest.raises(ValueError, match=r"--packing.long drop has no meaning .* by --packing.max-len"):
        decide(replace(config, data=(path,), packing=Packing(long="drop"), eval=EvalConfig()), 1)
    for how in ("fit", "single"):
        with pytest.raises(ValueError, match=rf"--packing.max-len 65 is longer than a row.* {how} .*--seq-len 65"):
            decide(replace(config, data=(path,), packing=Packing(how, 65), eval=EvalConfig()), 1)
    for packing in (Packing("fit", 64), Packing("concat", 65)):
        decide(replace(config, data=(path,), packing=packing, eval=EvalConfig()), 1)
    with pytest.raises(ValueError, match="no source has a weight above zero"):
        decide(replace(config, data=(path,), mix=MixConfig(weights=("0",)), eval=EvalConfig()), 1)


def test_bad_documents_are_found_before_anything_starts(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "held.jsonl", 30))
    path.write_text(path.read_text().replace("\n", '\n{"text": [999]}\n', 7))
    config = replace(SMALL, eval=EvalConfig(data=(str(path),)), out=tmp_path / "run")
    for asked in (config, replace(config, data=(str(path),), eval=EvalConfig())):
        with pytest.raises(ValueError) as caught:
            decide(asked, 1)
        told = str(caught.value).splitlines()[1:]
        for i, line in enumerate(told[:5]):
            assert f"held.jsonl:{2 + 2 * i}: token id 999 is beyond" in line
        more, remedy = (line.strip() for line in told[5:])
        assert more == "... and 2 more of the 37 that were looked at."
        assert remedy == "--max-bad N leaves out up to N documents that cannot be used."
        decide(replace(asked, max_bad=7), 1)
    decide(replace(config, eval=replace(config.eval, documents=1)), 1)


def test_who_gives_chats_to_pretraining_is_told_what_trains_on_them(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}))
    with pytest.raises(ValueError, match=r"no field 'text'.*\n.*Chats are what apps/sft.py trains on"):
        decide(replace(SMALL, data=(str(tmp_path / "chats.jsonl"),), out=tmp_path / "run"), 1)


@pytest.mark.parametrize(("hard", "works"), [(4096, True), (1100, False)])
def test_streams_have_the_files_they_need_or_are_refused(tmp_path: Path, hard: int, works: bool) -> None:
    path = write(tmp_path / "web.jsonl", 30)
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (600, {hard}))\n"
        "from omni_data import Part, stream_source; from room import make_room_for_files\n"
        f"make_room_for_files([Part(stream_source({path!r}))], 240)\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=Path(room.__file__).parent
    )
    assert (done.stdout.strip(), done.returncode) == (("1264", 0) if works else ("", 1))
    assert works or "1 streams of 240 virtual shards on each rank need 1264 open files" in done.stderr
