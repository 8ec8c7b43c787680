"""Laws of --profile: it sees the steps that it is asked for, ends with them, and training does not notice."""

import gzip
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from chatting import asked_in, tune
from decide import decide
from profiling import profiling
from ranks import Run
from request import MixConfig
from starting import numbers
from training import SMALL, train
from watching import profiled, watch_steps

from omni_mesh import MeshConfig, World


def steps_in(trace: Path) -> list[str]:
    """The spans of steps in a trace, in order, one after another."""
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    spans = [e for e in events if e.get("cat") == "user_annotation" and e["name"].startswith("step ")]
    spans.sort(key=lambda event: event["ts"])
    assert all(one["ts"] + one["dur"] <= other["ts"] for one, other in pairwise(spans))
    return [event["name"] for event in spans]


def written(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "profile").glob("*"))


def test_training_does_not_notice_and_the_most_of_time_and_memory_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = train(replace(SMALL, steps=5, out=tmp_path / "plain"))
    capsys.readouterr()
    config = replace(SMALL, steps=5, profile=(2, 3), out=tmp_path / "run")
    assert numbers(train(config)) == numbers(plain)
    assert written(config.out) == ["steps-2-3.trace.json.gz"]
    assert steps_in(config.out / "profile" / "steps-2-3.trace.json.gz") == ["step 2", "step 3"]
    told = capsys.readouterr().out
    assert "milliseconds a step, over 2 that were profiled:" in told
    assert "matrix products: aten::" in told and "  optimizer\n" in told
    assert "operators allocated" in told and " GB  aten::" in told
    assert told.index("step 3/5") < told.index("The profile is in") < told.index("step 4/5")


def test_of_two_ranks_the_first_alone_is_profiled(run: Run, tmp_path: Path) -> None:
    meshed = replace(SMALL, steps=4, mesh=MeshConfig(shard=2))
    plain, seen = (
        run(train, 2, replace(meshed, profile=profile, out=tmp_path / str(len(profile)))) for profile in ((), (4,))
    )
    assert numbers(seen[0]) == numbers(plain[0])
    assert written(tmp_path / "1") == ["step-4.trace.json.gz"], "the last step of a run ends its profile"
    events = json.loads(gzip.decompress((tmp_path / "1/profile/step-4.trace.json.gz").read_bytes()))["traceEvents"]
    assert [event for event in events if "gloo:" in event.get("name", "")]


def test_other_ranks_take_no_part(tmp_path: Path) -> None:
    for rank, kept in ((0, ["step-2.trace.json.gz"]), (1, [])):
        config = replace(SMALL, profile=(2,), out=tmp_path / str(rank))
        with profiling(config, World(rank, rank, 2, torch.device("cpu")), at=0) as through:
            assert list(through(iter("abc"))) == ["a", "b", "c"]
        assert written(config.out) == kept


@pytest.mark.parametrize(
    ("rows", "profile", "kept", "words"),
    [
        (24, (2, 9), ["steps-2-9.trace.json.gz"], "over 1 that were profiled"),
        (24, (3, 9), [], "Nothing was profiled: the run ended before step 3."),
        (24, (8,), [], "Nothing was profiled: the run ended before step 8."),
    ],
)
def test_a_profile_ends_where_data_do(
    rows: int, profile: tuple[int, ...], kept: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "".join(json.dumps({"text": "x" * (SMALL.seq_len - 1)}) + "\n" for _ in range(rows))
    (tmp_path / "d.jsonl").write_text(text)
    data = {"data": (str(tmp_path / "d.jsonl"),), "mix": MixConfig(epochs=(1,))}
    config = replace(SMALL, **data, profile=profile, out=tmp_path / "run")
    assert len(train(config)) == 2
    assert [name for name in written(config.out) if name.endswith(".gz")] == kept
    assert words in capsys.readouterr().out


def test_a_run_that_goes_on_profiles_what_is_left_and_says_if_nothing_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(SMALL, steps=6, profile=(2, 4), stop_after=None, out=tmp_path)
    train(replace(config, profile=(), stop_after=2))
    train(replace(config, stop_after=4))
    assert written(tmp_path) == ["steps-3-4.trace.json.gz"]
    capsys.readouterr()
    train(config)
    assert "Nothing is profiled: the run stands at step 4, past --profile." in capsys.readouterr().out


def test_an_error_ends_a_profile_and_is_told_as_it_is(tmp_path: Path) -> None:
    """So that the next can begin: a process has one profiler at a time."""
    config = replace(SMALL, profile=(1, 3), max_skips=1, out=tmp_path)
    with pytest.raises(FloatingPointError, match="at step 2 grad_norm is nan"):
        train(replace(config, optim=replace(config.optim, lr=1e30)))
    assert not written(tmp_path)
    with profiled(torch.device("cpu")):
        pass


def test_finetuning_is_profiled_as_well(tmp_path: Path) -> None:
    assert len(tune(asked_in(tmp_path, steps=2, profile=(2,)))) == 2
    assert written(tmp_path / "run") == ["step-2.trace.json.gz"]


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ((0,), "--profile 0 must be at least 1."),
        ((3, 2), "--profile 3 2 ends before it begins: give the first step, then the last."),
        ((1, 2, 3), "--profile 1 2 3 names 3 steps: give the first and the last, or one."),
        ((9, 11), "--profile 9 11 goes on after the last step of the run, which is 10: choose steps until there."),
    ],
)
def test_steps_that_are_none_of_the_run_are_refused_with_all_else(profile: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError) as told:
        decide(replace(SMALL, model="tinny", profile=profile), 1)
    assert words in str(told.value) and "did you mean tiny?" in str(told.value)


def test_steps_past_where_a_run_is_to_stop_are_refused() -> None:
    with pytest.raises(ValueError, match="--profile 5 goes on after the last step of the run, which is 4"):
        decide(replace(SMALL, stop_after=4, profile=(5,)), 1)


@pytest.mark.parametrize("count", range(6))
@pytest.mark.parametrize("steps", [range(0), range(1, 2), range(3, 5), range(4, 9)])
@pytest.mark.parametrize("at", [0, 2])
def test_whoever_looks_sees_the_steps_of_a_range_and_their_data(count: int, steps: range, at: int) -> None:
    """Whether the loop goes to the end of its items or leaves before."""
    for leaves in (False, True):
        told: list[Any] = []

        @contextmanager
        def look(told: list[Any] = told) -> Iterator[None]:
            told.append("begin")
            yield
            told.append("end")

        def items(told: list[Any] = told) -> Iterator[int]:
            for step in range(at + 1, at + count + 1):
                told.append(("data", step))
                yield step

        with watch_steps(steps, look, at=at) as watched:
            for step in watched(items()):
                told.append(("step", step))
                if leaves and step == at + count:
                    break
        ran = range(at + 1, at + count + 1)
        assert [event for event in told if isinstance(event, tuple)] == [
            (kind, step) for step in ran for kind in ("data", "step")
        ]
        seen = told[told.index("begin") + 1 : told.index("end")] if "begin" in told else []
        inside = [step for step in ran if step in steps] if steps.start > at else []
        assert seen == [(kind, step) for step in inside for kind in ("data", "step")]
        assert told.count("begin") == told.count("end") <= 1


def test_an_error_is_raised_in_what_looks_too() -> None:
    told: list[str] = []

    @contextmanager
    def look() -> Iterator[None]:
        try:
            yield
        except KeyError:
            told.append("saw it")
            raise

    with pytest.raises(KeyError), watch_steps(range(2, 4), look, at=0) as watched:
        for item in watched(iter("abc")):
            if item == "b":
                raise KeyError
    assert told == ["saw it"]


@pytest.mark.gpu
def test_a_profile_of_a_gpu_has_its_kernels_and_its_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = train(replace(SMALL, steps=4, out=tmp_path / "plain"))
    capsys.readouterr()
    config = replace(SMALL, steps=4, profile=(3, 4), out=tmp_path / "run")
    assert numbers(train(config)) == numbers(plain)
    assert written(config.out) == ["steps-3-4.memory.pickle", "steps-3-4.trace.json.gz"]
    assert steps_in(config.out / "profile" / "steps-3-4.trace.json.gz") == ["step 3", "step 4"]
    snapshot = pickle.loads((config.out / "profile" / "steps-3-4.memory.pickle").read_bytes())
    assert any(snapshot["device_traces"])
    told = capsys.readouterr().out
    assert "optimizer: " in told and "matrix products: " in told
    assert "were allocated:" in told and "was there before: parameters, moments" in told
