"""Reports of runs: what files say is what the page says, no spike is lost, and nothing of it is markup or a secret."""

import json
import math
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report
import torch
from charts import draw, may_be_log, tell
from columns import read_table, table_of
from comparison import compare, differing, mesh_of, state_of
from history import read_histories, read_history, tails
from hypothesis import given, settings
from hypothesis import strategies as st
from panels import panels_of, smoothed, thin
from pictures import make_pictures
from quantities import GROUPS, KNOWN, quantity_of
from runs_page import make_page
from scales import scale_of, ticks_of, words_of
from showing_runs import make_run, rows_of

from omni_ckpt import save_dcp, step_dir

NUMBERS = st.floats(-1e12, 1e12)


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=500), st.integers(1, 40))
def test_the_most_and_the_least_of_a_curve_are_drawn_however_few_points_are(values: list[float], buckets: int) -> None:
    curve = np.array(values)
    kept = thin(curve, buckets)
    assert curve[kept].max() == curve.max() and curve[kept].min() == curve.min()
    assert kept[0] == 0 and kept[-1] == len(curve) - 1 and (np.diff(kept) > 0).all() and len(kept) <= 2 * buckets + 4
    # In each stretch as well: a spike is drawn where it is.
    size = -(-len(curve) // buckets)
    for at in range(0, len(curve), size):
        inside = kept[(kept >= at) & (kept < at + size)]
        assert curve[inside].max() == curve[at : at + size].max() and curve[inside].min() == curve[at : at + size].min()


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=80), st.integers(1, 50))
def test_smoothing_is_the_mean_of_as_many_steps_before_as_after(values: list[float], reach: int) -> None:
    told, n = smoothed(np.array(values), reach), len(values)
    for i in range(n):
        wide = min(i, n - 1 - i, reach)
        mean = math.fsum(values[i - wide : i + wide + 1]) / (2 * wide + 1)
        near = values[max(0, i - 3 * wide - 1) : i + 3 * wide + 2]
        assert told[i] == pytest.approx(mean, abs=1e-9 * max(1.0, *map(abs, near)) * n)


def test_a_spike_is_smoothed_where_it_is_and_nowhere_else() -> None:
    values = np.full(200, 20.0)
    values[20] = math.exp(50)
    told = smoothed(values, 5)
    assert told[20] > 1e20
    assert np.allclose(np.delete(told, range(15, 26)), 20)


@settings(deadline=None)
@given(st.lists(st.floats(1e-9, 1e15), min_size=1, max_size=5), st.booleans(), st.booleans(), st.integers(3, 8))
def test_scales_have_room_for_all_and_ticks_are_round_and_few(
    values: list[float], log: bool, zero: bool, count: int
) -> None:
    scale = scale_of([np.array(values)], log=log, from_zero=zero)
    placed = scale.place(np.array(values))
    assert (placed >= 0).all() and (placed <= 1).all()
    ticks = ticks_of(scale, count)
    assert 1 <= len(ticks) <= 2 * count + 2 and ticks == sorted(ticks)
    assert all(scale.low - 1e-9 * abs(scale.low) <= tick <= scale.high * (1 + 1e-9) for tick in ticks)
    assert len({*words_of(ticks)}) == len(ticks), "no two ticks have one label"


@pytest.mark.parametrize(
    ("ticks", "told"),
    [
        ([0, 0.25, 0.5], ["0", "0.25", "0.50"]),
        ([0, 2e9, 4e9], ["0", "2B", "4B"]),
        ([1.5e6, 2e6], ["1.5M", "2.0M"]),
        ([0, 2e-4, 4e-4], ["0", "2e-4", "4e-4"]),
        ([1e-3, 1e-2, 1], ["0.001", "0.01", "1"]),
        ([0, 5e-4, 1e-3], ["0", "5e-4", "1e-3"]),
        ([980, 1000], ["0.98k", "1.00k"]),
    ],
)
def test_labels_of_ticks_have_as_many_digits_as_they_need(ticks: list[float], told: list[str]) -> None:
    assert words_of(ticks) == told


def test_lines_that_are_no_rows_are_told_by_file_and_line_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        b'{"step": 1, "loss": 3.0}',
        b"\xff\xfe",
        b"[1]",
        b'{"loss": 1}',
        b"",
        b'{"step": 2, "loss": NaN, "x": "y"}',
    ]
    path.write_bytes(b"\n".join([*lines, b'{"step": 3, "lo']))
    table = read_table(path)
    assert (
        table.steps.tolist() == [1, 2] and table.values("loss")[1].tolist() == [3.0] and table.names == ["step", "loss"]
    )
    at = [line.removeprefix(f"{path}:").split(" is no row")[0] for line in table.damaged]
    assert at == ["2", "3", "4", "7"] and table.damaged[-1].endswith("cut short as by a kill: it is left out.")
    path.write_text("{\n" * 9 + '{"step": 1}\n')
    assert len(read_table(path).damaged) == 6 and read_table(path).damaged[-1] == f"{path} has 4 more such lines."
    assert len(read_table(tmp_path / "none")) == 0


def test_of_a_step_that_is_told_twice_the_last_counts() -> None:
    table = table_of([{"step": s, "loss": loss} for s, loss in [(1, 9), (2, 8), (3, 7), (2, 6), (3, 5), (4, 4)]])
    assert table.steps.tolist() == [1, 2, 3, 4] and table.columns["loss"].tolist() == [9, 6, 5, 4]
    assert table.again == (2, 2, 3)


def test_a_run_that_was_started_several_times_is_one_curve(tmp_path: Path) -> None:
    rows = rows_of(30)
    run = make_run(tmp_path / "a", [*rows[:20], *rows[15:]], settings={"steps": 40})
    told = read_history(run)
    assert told.told.steps.tolist() == [*range(1, 31)]
    assert told.warnings == (f"{run}/metrics.jsonl has 5 rows of steps 16 to 20 twice: the last counts.",)
    assert told.where(np.array([30.0]), "seconds") == pytest.approx(sum(row["seconds"] for row in rows))
    assert state_of(told) == ("warn", "stands at step 30 of 40")


def test_what_is_no_run_is_told_with_what_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "a", rows_of(3))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError) as told:
        read_histories([tmp_path / "none", tmp_path / "runs", tmp_path / "empty", tmp_path / "file", run, run])
    assert str(told.value).splitlines() == [
        f"there is no {tmp_path}/none.",
        f"{tmp_path}/runs is no run: it has no metrics.jsonl. Runs in it: {run}",
        f"{tmp_path}/empty is no run: it has no metrics.jsonl.",
        f"{tmp_path}/file is a file: give the folder of a run, which has a metrics.jsonl.",
        f"{run} is given twice.",
    ]
    begun = make_run(tmp_path / "begun", [], settings={"steps": 5})
    (begun / "metrics.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"no step is told in .*begun/metrics.jsonl: a run tells.*\n.*:1 is no row"):
        read_histories([begun])
    runs = read_histories([begun, run])
    assert state_of(runs[0]) == ("warn", "no step is told") and "no step is told" in make_page(runs, panels_of(runs))
    with pytest.raises(ValueError, match="name the folder of a run"):
        report.main(report.Config(()))


def test_a_run_that_only_skipped_or_was_evaluated_is_drawn_beside_others(tmp_path: Path) -> None:
    good = make_run(tmp_path / "good", rows_of(5))
    bad = make_run(tmp_path / "bad", [], settings={"steps": 5})
    (bad / "skipped.jsonl").write_text('{"step": 1, "loss": "nan"}\n{"step": 2, "loss": "nan"}\n')
    seen = make_run(tmp_path / "seen", [], held_out=[{"step": 2, "loss": 2.5, "targets": 9}])
    for others in ([bad], [seen], [bad, seen]):
        runs = read_histories([good, *others])
        assert "steps" in make_page(runs, panels_of(runs))


def test_runs_of_one_name_have_labels_of_their_own(tmp_path: Path) -> None:
    runs = read_histories([make_run(tmp_path / name / "lr", rows_of(3)) for name in ("a", "b")])
    assert [run.label for run in runs] == ["a/lr", "b/lr"]
    assert tails([Path("/x"), Path("/y/x")]) == ["/x", "y/x"]


def test_every_number_of_a_run_is_drawn_known_or_not(tmp_path: Path) -> None:
    rows = [row | {"gates/open": i, "expert_load": [0.5, 1.5], "loss/web": 2.0} for i, row in enumerate(rows_of(40))]
    runs = read_histories([make_run(tmp_path / "a", rows, held_out=[{"step": 20, "loss": 2.5, "targets": 9}])])
    panels = {panel.name: panel for panel in panels_of(runs)}
    drawn = {*rows[0]} - {"step", "tokens", "expert_load", "tokens_per_second_per_rank"} | {"expert_load_most"}
    assert {*panels} == drawn and panels["gates/open"].group == "other" and panels["loss/web"].group == "loss"
    kinds = [(line.kind, line.what) for line in panels["loss"].lines]
    assert kinds == [("raw", "each step"), ("line", "smoothed"), ("points", "held out")]
    assert panels["lr"].lines[0].values.tolist() == [row["lr"] for row in rows]
    assert [line.label for line in panels["expert_load_most"].lines] == [
        "busiest over all layers",
        "idlest over all layers",
    ]
    assert tell(panels["lr"]).startswith("Learning rate. Learning rate: 9.5e-4 at step 1,")


def test_names_that_are_known_are_those_that_runs_tell() -> None:
    told = {"loss/web", "loss_of_text", "perplexity/web"}
    assert all(quantity_of(name).group in GROUPS and quantity_of(name).title for name in {*KNOWN} | told)
    assert quantity_of("loss/web").title == "Loss of web" and quantity_of("mfu").unit == "%"


def test_settings_and_numbers_of_runs_are_side_by_side(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", rows_of(30), settings={"steps": 30, "optim": {"lr": 1e-3}, "shard": -1})
    b = make_run(tmp_path / "b", rows_of(40, worse=1.0), settings={"steps": 50, "optim": {"lr": 1e-4}, "shard": 2})
    (b / "skipped.jsonl").write_text('{"step": 7, "loss": "nan", "grad_norm": "nan", "cursor": {}}\n')
    runs = read_histories([a, b])
    assert differing(runs) == [("steps", ["30", "50"]), ("optim.lr", ["0.001", "0.0001"]), ("shard", ["-1", "2"])]
    assert [mesh_of(run) for run in runs] == ["shard as many as there are", "shard 2"]
    assert [state_of(run)[1] for run in runs] == ["finished", "stands at step 40 of 50"]
    numbers = {name: ([one.words if one else None for one in found], best) for name, found, best in compare(runs)}
    assert numbers["Loss, last"][1] == {0} and numbers["Steps skipped"] == (["0", "1"], set())
    assert runs[1].warnings == ("step 7 was skipped, as the loss or the gradient was not finite.",)
    page = make_page(runs, panels_of(runs))
    assert "<code>optim.lr</code></th><td>0.001</td><td>1e-4</td>".replace("1e-4", "0.0001") in page
    assert page.count('class="marks "') > 0, "skipped steps are seen"


def test_what_lies_in_a_run_that_is_no_good_news_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", rows_of(3), settings=None)
    (run / "step-00000002.damaged").mkdir()
    (run / "metrics-1.jsonl").write_text("")
    (run / "step-00000003").mkdir()
    (run / "errors.log").write_text(
        "2026-01-02 03:04:05, process 3 of x\nTraceback:\nValueError: at s3://me:word@b\n\n"
    )
    (run / "config.yaml").write_text("steps: [")
    warnings = "\n".join(read_history(run).warnings)
    assert "config.yaml:1:9: no YAML" in warnings and "step-00000002.damaged was found damaged" in warnings
    assert "metrics-1.jsonl has rows of a run" in warnings and "step-00000003 is not a checkpoint" in warnings
    assert "it ended with an error at 2026-01-02 03:04:05: ValueError: at s3://***@b" in warnings


@pytest.mark.parametrize(
    ("about", "warned"),
    [
        ({"mesh": {"shard": 2, "sp": 1}, "config": {"model": "tiny"}}, False),
        ({}, False),
        ({"mesh": {"shard": "two"}}, True),
        ({"mesh": [1, 2], "config": {}}, True),
        ({"mesh": {}, "config": "tiny"}, True),
        ([], True),
    ],
)
def test_what_a_checkpoint_says_of_a_run_is_told_if_it_can_be_and_else_a_warning(
    about: Any, warned: bool, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "a", rows_of(3), settings=None)
    save_dcp({"w": torch.ones(1), "about": about}, step_dir(run, 3))
    history = read_history(run)
    assert [f"{step_dir(run, 3)}/state.json is damaged" in line for line in history.warnings] == [True] * warned
    assert (mesh_of(history), history.model) == (("shard 2", "tiny") if about and not warned else ("one rank", ""))
    assert make_page([history], panels_of([history]))


def test_nothing_of_a_file_is_markup_and_no_secret_is_told(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    rows = [row | {f"loss/{evil}": 1.0, 'a"b<i>': 2.0, "loss/x?token=hunter2": 1} for row in rows_of(3)]
    settings = {"model": "<b>&x", "data": ["s3://me:hunter2@bucket"], "weights": "https://x.org/m?token=hunter2"}
    run = make_run(tmp_path / "<script>", rows, settings=settings)
    (run / "errors.log").write_text(f"Error: {evil} --token hunter2")
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "api_key: hunter2\n")
    runs = read_histories([run, make_run(tmp_path / "b", rows)])
    for some in (runs[:1], runs):
        page = make_page(some, panels_of(some))
        assert "hunter2" not in page and "alert(1)</script>" not in page and "<b>&x" not in page and "<i>" not in page
        assert page.count("<script") == page.count("</script") == len(panels_of(some)) + 1
        assert "&lt;script&gt;" in page and "***@bucket" in page


def test_a_hundred_thousand_rows_are_a_small_page_in_seconds(tmp_path: Path) -> None:
    (row,), run = rows_of(1, more={"mfu": 0.4, "mfu_full_square": 0.5, "perplexity": 9.0}), tmp_path / "a"
    rest = json.dumps({name: row[name] for name in row.keys() - {"step", "loss", "tokens", "grad_norm"}})[1:]
    noise = np.random.default_rng(0).normal(size=100_000)
    noise[54_321] = 1234.5
    lines = [
        f'{{"step": {i + 1}, "loss": {5 - x / 1e3}, "grad_norm": {x}, "tokens": {3072 * i}, {rest}\n'
        for i, x in enumerate(noise.tolist())
    ]
    make_run(run, [])
    (run / "metrics.jsonl").write_text("".join(lines))
    began = time.process_time()
    runs = read_histories([run])
    panels = panels_of(runs)
    page = make_page(runs, panels)
    assert time.process_time() - began < 10
    assert len(page) < 2e6 and '"1.234k"' in page, "a spike of one step is told"
    for panel in panels:
        _, values = runs[0].told.values(panel.name)
        factor, drawn = quantity_of(panel.name).factor, panel.lines[0].values
        assert (drawn.min(), drawn.max()) == (values.min() * factor, values.max() * factor)


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    runs = read_histories([make_run(tmp_path / "a", rows_of(30))])
    page = make_page(runs, panels_of(runs)).replace("http://www.w3.org/2000/svg", "")
    assert page.startswith("<!doctype html>") and not re.search(r"http|src=|url\(|@import|<link", page)


def test_curves_are_within_their_chart_on_every_axis_and_scale(tmp_path: Path) -> None:
    runs = read_histories([make_run(tmp_path / name, rows_of(n)) for name, n in (("a", 40), ("b", 1))])
    for panel in panels_of(runs):
        for axis in ("step", "tokens", "seconds"):
            for log in (False, True) if may_be_log(panel) else (False,):
                for path in re.findall(
                    r'class="(?:line|raw|points) told [^"]*" d="([^"]+)"', draw(panel, axis=axis, log=log)
                ):
                    pairs = np.array(re.findall(r"([\d.]+) ([\d.]+)", path), float)
                    assert (pairs >= [44, 10]).all() and (pairs <= [368, 182]).all(), (panel.name, axis, log)


def test_pictures_are_png_and_without_resvg_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panels = [one for one in panels_of(read_histories([make_run(tmp_path / "a", rows_of(30))])) if one.group == "loss"]
    panels += [replace(panels[0], name="loss/a"), replace(panels[0], name="loss-a"), replace(panels[0], name="loss a")]
    pictures = make_pictures(panels)
    assert len(pictures) == len(panels) and {*pictures} == {"loss.png", "loss-a.png", "loss-a-2.png", "loss-a-3.png"}
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 5_000 for picture in pictures.values())
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ValueError, match=r"--png needs resvg.*uv run --extra png apps/report.py"):
        make_pictures(panels)


def test_the_app_writes_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "a", rows_of(3))
    report.main(report.Config((run,)))
    assert capsys.readouterr().out == f"page      {run}/report.html\n"
    report.main(report.Config((run,), tmp_path / "deep" / "x.html", tmp_path / "png"))
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"page      {tmp_path}/deep/x.html" and told[1].startswith("pictures  ")
    assert {path.suffix for path in (tmp_path / "png").iterdir()} == {".png"}
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"x.html cannot be written: File exists. Give another place with --to"):
        report.main(report.Config((run,), tmp_path / "file" / "x.html"))
