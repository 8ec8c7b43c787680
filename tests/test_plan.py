"""Laws of apps/plan.py: what it says is what was measured, what a step does, and what would help."""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from flags import parse
from footprint import How, trace_memory
from forecast import Forecast, as_json, forecast
from gpus import GPUS, Cluster
from meshes import divisors, list_specs
from outlook import Choice, Outlook, Theatre, choice_asked, look_ahead, traffic_of
from page import make_page
from picture import WIDE, bar, draw_mesh, tell_forecast
from plan import main
from plans import DOC, HERE, MARKED, OTHERS, Compared, compare_records, make_table
from request import Config as RunConfig
from subject import Config, Subject, read_subject
from table import read_records
from tracing import TRAFFIC, WORLDS, config_of, ranks_of_world, trace
from traffic import Collective, Group, group_of, ranks_of, seconds_of
from training import write_family
from work import Rehearsal, between

from omni_mesh import MeshConfig, MeshSpec
from omni_models import PRESETS
from omni_parallel import AdamWConfig, RecomputeConfig

PLAN = Path(__file__).parent.parent / "apps" / "plan.py"
REFUSED = "this run cannot start:"
TINY = RunConfig(model="tiny", seq_len=512, batch=8)


@pytest.fixture(scope="module")
def compared() -> list[Compared]:
    return compare_records(HERE)


@pytest.fixture(scope="module")
def tiny() -> Subject:
    return read_subject(Config(run=TINY, gpus=4))


@pytest.fixture(scope="module")
def told(tiny: Subject) -> Forecast:
    return forecast(tiny)


def test_memory_is_within_a_tenth_and_time_within_a_fifth_of_every_record(compared: list[Compared]) -> None:
    assert len(compared) == len(read_records(HERE)) and OTHERS.keys() < {one.name for one in compared}
    own = [one for one in compared if one.name not in OTHERS]
    assert not [one for one in own if abs(one.memory_error) > 0.1 or abs(one.time_error) > 0.2]
    assert sum(abs(one.memory_error) for one in own) / len(own) < 0.01
    assert sum(abs(one.time_error) for one in own) / len(own) < 0.04


def test_the_table_of_the_documentation_is_that_of_the_code(compared: list[Compared]) -> None:
    found = MARKED.search(DOC.read_text())
    assert found and make_table(compared) in found[0], "uv run benchmarks/plans.py --write"


@pytest.mark.parametrize("name", WORLDS)
def test_a_plan_names_every_collective_of_a_step(name: str, tmp_path: Path) -> None:
    config = config_of(name, tmp_path)
    heard = [tuple(each) for each in json.loads(TRAFFIC.read_text())[name]]
    true = Counter((op, tuple(ranks), nbytes) for op, ranks, nbytes in heard)
    subject = read_subject(Config(run=replace(config, dtype="auto"), gpus=ranks_of_world(config)))
    choice = replace(choice_asked(subject), keep_gathered=bool(config.keep_gathered))
    outlook = look_ahead(theatre := Theatre(subject), subject.spec, choice)
    planned = Counter[Any]()
    for one, count in traffic_of(theatre, outlook).items():
        if len(ranks := ranks_of(subject.spec, one.axis)) > 1:
            planned[one.op, ranks, one.bytes] += count
    assert planned == true


@pytest.mark.parametrize("name", ["shard 4", "replicate 2, shard 2", "sp 2, shard 2", "ep 2"])
def test_a_step_sends_what_it_did_in_that_order(name: str, tmp_path: Path) -> None:
    heard = json.loads(TRAFFIC.read_text())[name]
    assert [list(each) for each in trace(config_of(name, tmp_path))] == heard, "uv run tests/tracing.py"


def test_the_peak_is_the_fullest_moment_and_not_the_sum_of_all(tiny: Subject) -> None:
    outlook = look_ahead(Theatre(tiny), tiny.spec, Choice(2))
    peak, moments = outlook.footprint.peak, outlook.footprint.moments
    assert peak.total == max(moment.total for moment in moments)
    first, last = moments[0], moments[-1]
    assert first.when.startswith("forward") and first.gradients == 0 < first.activations
    assert last.when == "update of parameters" and last.activations == 0 < last.gradients
    again = look_ahead(Theatre(tiny), tiny.spec, Choice(1)).footprint.moments[0]
    assert again.gradients == last.gradients, "a later pass finds the gradients of the one before"
    most = {name: max(getattr(moment, name) for moment in moments) for name in ("gradients", "activations")}
    assert peak.total < peak.weights + peak.moments + peak.gathered + sum(most.values()) + peak.temporary


def test_weights_moments_and_gradients_are_those_of_the_optimizer(tiny: Subject) -> None:
    numbers, ranks = tiny.facts.num_params, 4
    for dtype, each in (("float32", 8), ("bfloat16", 4)):
        run = replace(TINY, optim=AdamWConfig(state_dtype=dtype))
        moment = look_ahead(Theatre(_with(tiny, run)), tiny.spec, Choice(2)).footprint.moments[-1]
        assert (moment.weights, moment.moments) == (4 * numbers // ranks, each * numbers // ranks)
        assert moment.gradients == pytest.approx(4 * numbers / ranks, abs=64)
    away = _with(tiny, replace(TINY, optim=AdamWConfig(offload=True)))
    footprint = look_ahead(Theatre(away), tiny.spec, Choice(2)).footprint
    assert footprint.moments[-1].moments == 0 and footprint.host == 8 * numbers // ranks


def test_what_trades_speed_for_memory_does(tiny: Subject) -> None:
    theatre = Theatre(_with(tiny, replace(TINY, seq_len=4096)))
    plain, kept, every, away = (
        look_ahead(theatre, tiny.spec, Choice(2, recompute, offload=offload))
        for recompute, offload in (
            (RecomputeConfig(), False),
            (RecomputeConfig(1, "attention"), False),
            (RecomputeConfig(1), False),
            (RecomputeConfig(1), True),
        )
    )
    acts = [one.footprint.moments[1].activations for one in (plain, kept, every, away)]
    assert acts == sorted(acts, reverse=True) and len(set(acts)) == 4
    parts = [one.pace.parts["products"] + one.pace.parts["attention"] for one in (plain, kept, every)]
    assert parts == sorted(parts) and len(set(parts)) == 3
    half = look_ahead(theatre, tiny.spec, Choice(2, RecomputeConfig(2))).footprint.moments[1].activations
    assert half == pytest.approx((acts[0] + acts[2]) / 2, rel=0.01)


def test_blocks_that_keep_products_hold_each_as_much_more(tiny: Subject) -> None:
    theatre, count = Theatre(_with(tiny, replace(TINY, seq_len=4096))), len(tiny.facts.blocks)
    hows = [RecomputeConfig(1, "attention", some) for some in range(count)] + [RecomputeConfig(1, "matmuls")]
    kept = [look_ahead(theatre, tiny.spec, Choice(2, how)).footprint.moments[1].activations for how in hows]
    steps = [more - less for less, more in pairwise(kept)]
    assert all(step > 0 and step == pytest.approx(steps[0], rel=0.01) for step in steps), kept
    assert "--recompute.matmuls 3" in Choice(2, hows[3]).flags(tiny.spec)
    away = [look_ahead(theatre, tiny.spec, Choice(2, how, offload=True)).footprint for how in hows[:count]]
    hosts, here = zip(*((one.host, one.moments[1].activations) for one in away), strict=True)
    assert hosts[0] == hosts[1] > hosts[2] > hosts[3] > 0, (
        "the last block stays anyway, and so does what keeps products"
    )
    assert here[0] < here[1] < here[2] < here[3] < kept[3]


def test_what_a_block_keeps_is_what_its_kernels_keep() -> None:
    subject = read_subject(Config(run=replace(TINY, batch=1), gpus=1))
    rehearsed = Theatre(subject).rehearse(subject.spec, Choice(1), 512)
    assert rehearsed.blocks[0].forward.kept == _kept_by_kernels(512)
    plain = read_subject(Config(run=replace(TINY, batch=1, kernels="none"), gpus=1))
    assert Theatre(plain).rehearse(plain.spec, Choice(1), 512).blocks[0].forward.kept > 1.5 * _kept_by_kernels(512)


def _kept_by_kernels(T: int) -> int:
    """Of a block of `tiny`: hidden 128, 4 query and 2 key heads of 32, feed-forward 384; two bytes a number."""
    H, N, K, F = 128, 4 * 32, 2 * 32, 384
    norms = 2 * H + 2 * H + 2 * N + 2 * K + 4 * (1 + 1 + 4 + 2)  # Their outputs or inputs, and a number a row of each.
    attention = 2 * (N + K + K + N) + 4 * 4  # Turned queries and keys, values, what it gives, and a sum for each head.
    return T * (norms + attention + 2 * H + 2 * 3 * F + 2 * H)


def test_between_two_rehearsals_is_a_line(tiny: Subject) -> None:
    theatre = Theatre(tiny)
    few, some, many = (theatre.rehearse(tiny.spec, Choice(1, RecomputeConfig(1)), n) for n in (4096, 8192, 32768))
    line = between(few, many, 8192)
    assert isinstance(line, Rehearsal) and line.tokens == 8192
    for a, b in zip(line.blocks, some.blocks, strict=True):
        for one, true in ((a.forward, b.forward), (a.backward, b.backward)):
            assert (one.kept, one.flops, one.kernels) == (true.kept, true.flops, true.kernels)
            assert one.attention == true.attention and one.extra == pytest.approx(true.extra, rel=0.02)


def test_groups_know_their_nodes() -> None:
    spec = MeshSpec(replicate=4, shard=8, sp=2, ep=4)
    assert group_of(spec, "sp", 8) == Group(2, 2) and group_of(spec, "sp", 8).nodes == 1
    assert group_of(spec, "fsdp", 8) == Group(16, 8) and group_of(spec, "fsdp", 8).nodes == 2
    assert group_of(spec, "replicate", 8) == Group(4, 1) and group_of(spec, "efsdp", 8) == Group(4, 2)


def test_a_collective_takes_its_bytes_and_its_hops() -> None:
    cluster, slow = Cluster(GPUS["h200"]), Cluster(GPUS["h200"], net=20e9)
    big, far = seconds_of(Collective("all_gather", "fsdp", 8 * 10**9), MeshSpec(shard=16), slow)
    assert far and big == pytest.approx(8e9 / 2 / (8 * 20e9), rel=0.01)
    near, far = seconds_of(Collective("all_gather", "fsdp", 8 * 10**9), MeshSpec(shard=8), cluster)
    assert not far and near == pytest.approx(8e9 * 7 / 8 / 330e9, rel=0.01)
    small = [seconds_of(Collective("all_reduce", "fsdp", 8), MeshSpec(shard=n), cluster)[0] for n in (8, 64, 4096)]
    assert small == sorted(small) and small[2] > 10 * small[1]


def test_meshes_share_out_rows_and_ranks(tiny: Subject) -> None:
    specs = list(list_specs(_with(tiny, replace(TINY, model="tiny-moe"))))
    assert specs and all(spec.world == 4 and 8 % spec.dp == 0 for spec in specs)
    assert len(specs) == len(set(specs)) and divisors(16384)[-1] == 16384


def test_the_best_fit_and_the_fastest_is_first(told: Forecast) -> None:
    best = told.found.best
    assert best and all(one.fits for one in best) and told.asked and told.asked.fits
    assert [one.speed for one in best] == sorted((one.speed for one in best), reverse=True)


def test_all_is_told_in_words_numbers_and_a_page(told: Forecast) -> None:
    words = tell_forecast(told)
    for part in (
        "model     qwen3",
        "memory    fits",
        "pace ",
        "bound by",
        "node 0",
        "all_gather",
        "the fastest that fit",
    ):
        assert part in words
    numbers = json.loads(json.dumps(as_json(told)))
    memory = numbers["best"][0]["memory"]
    kinds = ("weights", "moments", "gathered", "gradients", "activations", "temporary")
    assert memory["total"] == sum(memory[kind] for kind in kinds) <= numbers["best"][0]["usable_bytes"]
    assert numbers["asked"]["seconds"] == pytest.approx(sum(numbers["asked"]["seconds_of"].values()))
    page = make_page(told)
    assert page.startswith("<!doctype html>") and "<svg" in page and "<script" not in page and "http" not in page


def test_pictures_are_as_wide_as_memory(told: Forecast) -> None:
    assert told.asked
    moment = told.asked.footprint.peak
    assert bar(moment, moment.total).count(".") == 0 and len(bar(moment, moment.total)) == WIDE + 3
    assert bar(moment, moment.total / 2).endswith("+") and bar(moment, 2 * moment.total).count(".") == WIDE // 2
    drawn = draw_mesh(MeshSpec(replicate=2, shard=16), 8)
    assert drawn[0] == "r replicate 2, s shard 16" and drawn[1].endswith("| r0s6 | r0s7 |") and len(drawn) == 5


WRONG = {
    "--gpu h20": "--gpu h20: no GPU of that name is known. Did you mean h200?",
    "--gpus 0": "--gpus 0 must be at least 1 and at most 16,384.",
    "--model qwen3-8c": "did you mean qwen3-8b?",
    "--node-gpus 0": "--node-gpus 0 and --best 5 must be at least 1.",
    "--net-gbps 0": "must be positive",
    "--reach 0.5": "--reach 0.5 must be at least 1",
    "--attention eager": "--attention eager holds all scores",
    "--gpus 8 --shard 3": "shard=3 makes 3 ranks, but the world has 8",
}


@pytest.mark.parametrize("flags", WRONG)
def test_what_is_wrong_is_told(flags: str) -> None:
    with pytest.raises(ValueError, match=re.escape(WRONG[flags])):
        read_subject(parse(Config, None, args=flags.split()))


def test_a_run_that_fits_nowhere_is_told_what_would_make_it_fit() -> None:
    run = RunConfig(model="qwen3-8b", seq_len=65536, batch=2)
    subject = read_subject(Config(run=run, gpus=1))
    with pytest.raises(ValueError) as told:
        forecast(subject)
    words = str(told.value)
    assert "qwen3-8b does not fit 1 GPU of kind h200" in words and "at its fullest moment" in words
    assert "it fits with --optim.offload." in words and "it fits 2 GPUs, as --shard 2, with --batch 4." in words
    assert look_ahead(Theatre(_with(subject, replace(run, optim=AdamWConfig(offload=True)))), subject.spec, _SMALL).fits
    assert not look_ahead(Theatre(subject), subject.spec, _SMALL).fits


_SMALL = Choice(2, RecomputeConfig(1, "attention"), offload=True)


def test_rows_that_cannot_be_shared_are_told_and_other_meshes_found() -> None:
    subject = read_subject(Config(run=replace(TINY, batch=2, seq_len=8192), gpus=4))
    told = forecast(subject)
    assert told.asked is None and "--batch 2 rows do not divide among 4 ranks" in subject.wrong[0]
    assert told.found.best and all(one.spec.sp > 1 for one in told.found.best)
    assert "as asked for it cannot be" in tell_forecast(told)


def test_flags_of_a_plan_are_those_of_a_run() -> None:
    choice = Choice(2, RecomputeConfig(1, "attention"), keep_gathered=True, offload=True)
    flags = choice.flags(MeshSpec(replicate=2, shard=4, ep=2))
    run = parse(RunConfig, None, args=flags.split())
    assert run.mesh == MeshConfig(replicate=2, shard=4, ep=2)
    assert (run.micro, run.recompute, run.keep_gathered, run.offload) == (2, choice.recompute, True, True)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "qwen3_moe"])
def test_any_model_is_planned(family: str, tmp_path: Path) -> None:
    subject = read_subject(Config(run=replace(TINY, model=write_family(family, tmp_path)), gpus=2))
    outlook = look_ahead(Theatre(subject), subject.spec, choice_asked(subject))
    assert isinstance(outlook, Outlook) and outlook.footprint.peak.total > 0 < outlook.speed


def test_heads_that_ranks_do_not_divide_are_planned_too(tiny: Subject) -> None:
    assert tiny.facts.num_heads % 3 and look_ahead(Theatre(tiny), MeshSpec(sp=3), Choice(1)).fits


def test_the_largest_is_planned_in_seconds() -> None:
    assert "deepseek-v3" in PRESETS
    began = time.process_time()
    subject = read_subject(Config(run=RunConfig(model="deepseek-v3", seq_len=8192, batch=16384), gpus=16384))
    found = forecast(subject).found
    assert found.best and time.process_time() - began < 30


def test_a_step_is_no_longer_than_the_sum_of_its_passes(tiny: Subject) -> None:
    one = look_ahead(Theatre(tiny), tiny.spec, Choice(2))
    two = look_ahead(Theatre(tiny), tiny.spec, Choice(1))
    assert one.how.passes == 1 and two.how.passes == 2 and one.pace.seconds < two.pace.seconds


def test_what_a_plan_of_a_model_that_sees_leaves_out_is_told(told: Forecast) -> None:
    seeing = forecast(read_subject(Config(run=replace(TINY, model="tiny-vl"), gpus=2)))
    why = "media: rows are of text, and the 2 blocks of towers count as parameters alone"
    assert f"left out  {why}" in tell_forecast(seeing)
    assert f"Left out are {why}." in make_page(seeing) and as_json(seeing)["left_out"] == why
    assert "left out" not in tell_forecast(told) and as_json(told)["left_out"] == ""


def test_the_app_prints_and_writes(tmp_path: Path) -> None:
    page = tmp_path / "deep" / "plan.html"
    words = ["--model", "tiny", "--gpus", "2", "--batch", "4", "--json", "--html", str(page)]
    done = subprocess.run(
        [sys.executable, str(PLAN), *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gpus"] == 2 and page.read_text().startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_a_page_that_cannot_be_written_is_told_before_anything_is_planned(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    page = tmp_path / "file" / "plan.html"
    with pytest.raises(ValueError, match=f"--html {page} cannot be written: File exists. Give another place."):
        main(Config(run=TINY, gpus=4, html=page))


def test_the_app_reads_the_settings_of_a_run(tmp_path: Path) -> None:
    settings = tmp_path / "run.yaml"
    settings.write_text("model: tiny\nbatch: 4\nmedia: {max_frames: 9}\ntower_lr: 1e-6\n")

    def ask(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, str(PLAN), "--config", str(settings), *words], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    code, told, _ = ask("--gpus", "2", "--batch", "8", "--json")
    assert code == 0 and json.loads(told)["rows"] == 8
    settings.write_text("modle: tiny\n")
    assert ask() == (2, "", f"error: {REFUSED}\n  - {settings}:1: there is no key modle. Did you mean model?\n")


def _with(subject: Subject, run: RunConfig) -> Subject:
    """The same, asked for otherwise."""
    return replace(subject, asked=replace(subject.asked, run=run))


def test_a_footprint_is_pure(tiny: Subject) -> None:
    seen = Theatre(tiny).rehearse(tiny.spec, Choice(2), 1024)
    how = How(tiny.spec, 1024)
    assert trace_memory(tiny.facts, tiny.sizes, seen, how) == trace_memory(tiny.facts, tiny.sizes, seen, how)
