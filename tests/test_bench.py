"""Laws of apps/bench.py: it measures what apps/pretrain.py does, keeps nothing else, and says when that got worse."""

import ast
import gzip
import json
import timeit
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import bench
import place
import pytest
import request
import room
import torch
from decide import decide
from decision import Decision
from flags import parse
from measuring import decide_measured, to_run
from peak import measure_matmul
from ranks import Run
from records import ROOT, ask, tell_command
from request_bench import TOLD, Config
from starting import run_as_rank
from training import SMALL, train
from transformers import PreTrainedModel

from omni_data import Packing
from omni_mesh import Mesh, MeshConfig

BENCH = ROOT / "apps" / "bench.py"
SHORT = Config(run=replace(SMALL, steps=4), skip=1, profiled=2, commit="abcdefg")
SHARES = ("compute", "optimizer", "exposed_communication", "exposed_host_copy", "idle")
MEASURED = ("tokens_per_second", "tokens_per_second_per_rank", "tflops_per_rank", "seconds", "memory_gb")


def measure(asked: Config) -> dict[str, Any]:
    """The record of a measurement."""
    bench.main(asked)
    return json.loads((asked.to / f"{asked.name}.json").read_text())


def check(record: dict[str, Any], ranks: int) -> None:
    assert (record["steps"], record["profiled_steps"], record["commit"]) == (3, 2, "abcdefg")
    assert all(record[name] > 0 for name in (*MEASURED, "matmul_tflops", "share_of_matmul_peak"))
    assert record["tokens_per_second"] == pytest.approx(ranks * record["tokens_per_second_per_rank"], rel=1e-4)
    assert 0 <= record["data_seconds"] <= record["data_seconds_most"]
    assert sum(record[f"{share}_seconds"] for share in SHARES) == pytest.approx(record["profiled_seconds"], abs=1e-5)
    assert record["compute_seconds"] > record["optimizer_seconds"] > 0 and record["idle_seconds"] > 0


def steps_of(told: str) -> list[str]:
    """What is told of the numbers of each step."""
    return [line[: line.index("  lr ")] for line in told.splitlines() if "  lr " in line]


def contents(folder: Path) -> dict[Path, bytes]:
    """Of every file in a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_step_on_one_rank_is_measured_and_where_its_time_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "traces" / "new" / "trace.json.gz"
    record = measure(replace(SHORT, name="one", to=tmp_path / "records", note="A note.", trace=trace))
    check(record, 1)
    assert record["note"] == "A note." and record["host_syncs"] == 0
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert {"step 5", "step 6"} == {name for e in events if (name := e.get("name", "")).startswith("step ")}
    told = capsys.readouterr().out
    assert "kernel or operator" in told and "matrix products: aten::" in told
    assert f'"seconds": {record["seconds"]}' in told


def test_of_media_towers_are_measured_apart(tmp_path: Path) -> None:
    fit = Packing(how="fit", long="right")
    seeing = replace(SHORT.run, model="tiny-vl", packing=fit, seq_len=128, batch=2, virtual_shards=2)
    record = measure(replace(SHORT, run=seeing, kind="media", name="media", to=tmp_path))
    assert 0 < record["tower_seconds"] < record["seconds"] and record["tower_tflops_per_rank"] > 0
    assert 0 < record["tower_share_of_operations"] < 0.2 < record["tower_share_of_seconds"] + 0.15 < 0.95


def test_ranks_that_share_parameters_wait_for_each_other(run: Run, tmp_path: Path) -> None:
    meshed = replace(SHORT.run, mesh=MeshConfig(shard=2))
    run(bench.main, 2, replace(SHORT, run=meshed, name="two", to=tmp_path))
    record = json.loads((tmp_path / "two.json").read_text())
    check(record, 2)
    assert record["exposed_communication_seconds"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["two.json"]


def test_it_trains_as_the_app_does_and_leaves_what_the_app_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also beside checkpoints, which it does not go on from; and without a profile."""
    config = replace(SMALL, steps=4, out=tmp_path)
    train(config)
    told = steps_of(capsys.readouterr().out)
    there = contents(tmp_path)
    bench.main(replace(SHORT, run=replace(config, profile=(2,), stop_after=3), profiled=0))
    again = capsys.readouterr().out
    assert steps_of(again) == told and len(told) == 4
    assert "idle" not in again
    assert contents(tmp_path) == there


def test_it_needs_no_room_for_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda root: 0)
    with pytest.raises(ValueError, match="has 0 B free, and checkpoints will take"):
        decide(SHORT.run)
    decide_measured(SHORT)


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    wrong = replace(SHORT, run=replace(SHORT.run, model="tinny", steps=3), skip=3, profiled=0, trace=tmp_path / "t")
    with pytest.raises(ValueError) as told:
        decide_measured(replace(wrong, check=True))
    message = str(told.value)
    for part in (
        "did you mean tiny?",
        "--steps 3 are no more than --skip 3: run longer, or skip fewer.",
        "needs steps to be profiled: leave --profiled 0 out.",
        "--check compares with a record: give its --name.",
    ):
        assert part in message
    assert message.count("this run cannot start:") == 1 and message.count("\n  - ") == len(message.splitlines()) - 1
    with pytest.raises(ValueError, match=r"there is no record .*none.json yet: write one first, without --check"):
        decide_measured(replace(SHORT, name="none", to=tmp_path, check=True))
    (tmp_path / "other.json").write_text(json.dumps({"gpu": "another"}))
    with pytest.raises(ValueError, match="the record is of another, and this is"):
        decide_measured(replace(SHORT, name="other", to=tmp_path, check=True))
    with pytest.raises(ValueError, match="--skip -1 and --profiled -2 must be at least 0"):
        decide_measured(replace(SHORT, skip=-1, profiled=-2))


def test_a_trace_that_cannot_be_written_is_refused_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"nothing can be written into --trace .*/file/new: Not a directory"):
        decide_measured(replace(SHORT, trace=tmp_path / "file" / "new" / "x.json.gz"))
    with pytest.raises(ValueError, match=r"--trace .* is a folder: name a file in it, .*/trace.json.gz for example"):
        decide_measured(replace(SHORT, trace=tmp_path))
    decide_measured(replace(SHORT, trace=tmp_path / "new" / "x.json.gz"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_data_that_end_before_what_is_to_be_seen_are_told(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": "x" * 63}) + "\n" for _ in range(4 * 12)))
    few = replace(SHORT.run, data=(str(tmp_path / "d.jsonl"),), mix=request.MixConfig(epochs=(1,)))
    with pytest.raises(ValueError, match="the data ended before a step was profiled"):
        bench.main(replace(SHORT, run=few))
    with pytest.raises(ValueError, match="4 steps are no more than the 6 to skip: run longer, or give more data"):
        bench.main(replace(SHORT, run=replace(few, steps=8), skip=6, profiled=0))


def test_a_run_that_is_worse_than_its_record_exits_with_1(run: Run, tmp_path: Path) -> None:
    words = ["--steps", "3", "--seq-len", "64", "--shard", "2", "--profiled", "0"]
    own = ["--skip", "1", "--name", "it", "--to", str(tmp_path), "--commit", "abcdefg", "--note", "a b"]

    def measured(*more: str) -> list[tuple[int, str, str]]:
        return run(run_as_rank, 2, BENCH, (*words, *own, *more), tmp_path)

    (code, told, _), other = measured()
    assert (code, other) == (0, (0, "", ""))
    record = json.loads((tmp_path / "it.json").read_text())
    assert json.loads(told[told.index("{\n") :]) == record
    assert record["command"] == f"uv run apps/bench.py {' '.join(words)} --skip 1"
    assert record["note"] == "a b" and "idle_seconds" not in record
    kept = json.dumps(record | {"tokens_per_second_per_rank": 1e9})
    (tmp_path / "it.json").write_text(kept)
    (code, _, errors), (other, *_) = measured("--check")
    assert (code, other) == (1, 0)
    assert f"worse than {tmp_path / 'it.json'}:\ntokens_per_second_per_rank is " in errors
    for code, told, errors in measured("--check", "--seq-len", "32"):
        assert (code, told) == (2, "")
        assert "the record is of something else (--seq-len):" in errors
    assert (tmp_path / "it.json").read_text() == kept and not (tmp_path / "runs").exists()


def test_a_model_can_be_placed_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    placed: list[str] = []

    def place_and_tell(config: request.Config, run: Decision, mesh: Mesh) -> PreTrainedModel:
        placed.append(config.model)
        return place.place(config, run, mesh)

    bench.main(replace(SHORT, profiled=0), place_and_tell)
    assert placed == ["tiny"]


def test_routers_that_are_overruled_give_every_expert_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(SHORT.run, model="tiny-moe", steps=2)
    told = []
    for balanced in (False, True):
        bench.main(replace(SHORT, run=config, profiled=0, balanced=balanced))
        lines = [line for line in capsys.readouterr().out.splitlines() if "busiest expert" in line]
        told.append({line.split("busiest expert ")[1].split()[0] for line in lines})
    assert "1.0x" not in told[0] and told[1] == {"1.0x"}


def test_flags_of_the_app_are_flags_here_and_what_keeps_something_does_nothing() -> None:
    words = ["--steps", "9", "--keep", "3", "--save-to", "there", "--stop-after", "2", "--optim.lr", "1", "--name", "a"]
    asked = parse(Config, bench.__doc__, told=TOLD, args=words)
    run = to_run(asked)
    assert (asked.name, run.optim.lr, run.steps) == ("a", 1, 9 + asked.profiled)
    assert (run.save_to, run.stop_after, run.profile) == (None, None, ())


def modules_of(path: Path) -> set[Path]:
    """The modules of apps/ that an app imports, and it."""
    found, new = set[Path](), {path}
    while new:
        found |= new
        names = {node.module for one in new for node in ast.walk(syntax(one)) if isinstance(node, ast.ImportFrom)}
        new = {file for name in names if (file := path.with_name(f"{name}.py")).exists()} - found
    return found


def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_every_flag_of_the_app_does_something_here_or_is_told_otherwise() -> None:
    """Does something: a module that is imported here reads it."""
    nodes = [node for path in modules_of(BENCH) for node in ast.walk(syntax(path))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    for kind in (request.Config, request.MixConfig, request.EvalConfig):
        assert {field.name for field in fields(kind)} <= read | TOLD.get(kind, {}).keys()


def test_the_command_of_a_record_is_that_of_the_script_that_made_it() -> None:
    copies = str(ROOT / "benchmarks" / "copies.py")
    assert tell_command([copies, "--to", "a b", "--data", "c d"]) == "uv run benchmarks/copies.py --data 'c d'"


def test_a_commit_that_nothing_tells_is_asked_for() -> None:
    with pytest.raises(ValueError, match="git no-such-word does not tell the commit of the code: give --commit"):
        ask("git", "no-such-word")


def test_matrix_products_are_no_faster_than_a_clock_says() -> None:
    told = measure_matmul(torch.device("cpu"), repeats=5)
    x_NN = torch.randn(1024, 1024)
    seconds = min(timeit.repeat(lambda: x_NN @ x_NN, number=1, repeat=9))
    assert 0 < told < 2 * 2 * 1024**3 / seconds / 1e12


@pytest.mark.gpu
def test_a_step_of_a_gpu_has_kernels_that_overlap_and_its_host_waits_once(tmp_path: Path) -> None:
    record = measure(replace(SHORT, name="gpu", to=tmp_path))
    check(record, 1)
    assert record["host_syncs"] >= 1
    assert 100 < record["matmul_tflops"] < 5000 and record["share_of_matmul_peak"] < 1
