"""Laws of the records of benchmarks: the README shows what they say, and what is worse is told."""

from typing import Any

import pytest
from records import compare, summarize
from table import HERE, MARKED, README, make_table, read_records

RECORDS = read_records(HERE)


def test_the_table_of_the_readme_is_that_of_the_records() -> None:
    found = MARKED.search(README.read_text())
    assert found and make_table(RECORDS) in found[0], "uv run benchmarks/table.py --write"


def test_a_column_that_no_record_has_is_left_out_of_the_table() -> None:
    without = record() | {"tflops_per_rank": 5.0, "command": "uv run apps/bench.py"}
    head, line, row = make_table({"one": without}).splitlines()
    assert head == "| run | GPU | tokens/s/GPU | TFLOP/s/GPU | peak GB | command after `uv run` |"
    assert line.count("---") == 6 and row == "| one | A | 100 | 5 | 10.0 | `apps/bench.py` |"
    head, _, *rows = make_table({"one": without, "two": without | {"share_of_matmul_peak": 0.5}}).splitlines()
    assert "| of matmul peak |" in head and "| 5 |  | 10.0 |" in rows[0] and "| 5 | 50% | 10.0 |" in rows[1]


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_says_how_to_make_it_again(name: str) -> None:
    record = RECORDS[name]
    wanted = {"tokens_per_second_per_rank", "tflops_per_rank", "seconds", "data_seconds", "memory_gb", "steps"}
    assert {*wanted, "command", "note", "date", "commit", "gpu", "versions"} <= record.keys()
    assert record["command"].startswith("uv run ") and len(record["commit"]) >= 7
    assert {"torch", "transformers"} <= record["versions"].keys()


def record(speed: float = 100.0, memory: float = 10.0, gpu: str = "A") -> dict[str, Any]:
    command = "uv run apps/bench.py --batch 2"
    return {"tokens_per_second_per_rank": speed, "memory_gb": memory, "gpu": gpu, "command": command}


def test_five_percent_are_noise_and_more_is_told() -> None:
    assert compare(record(95.1, 10.4), record()) == []
    assert compare(record(200.0, 1.0), record()) == []
    assert compare(record(94.9), record()) == ["tokens_per_second_per_rank is 94.9, was 100.0"]
    assert compare(record(94.9, 10.6), record())[1:] == ["memory_gb is 10.6, was 10.0"]
    with pytest.raises(ValueError, match="the record is of A, and this is B: compare on the same"):
        compare(record(gpu="B"), record())


ALIKE = (
    "uv run benchmarks/bench.py --batch 2 --steps 22 --profile-at 15",
    "uv run apps/pretrain.py --steps=9 --batch=2",
    "uv run apps/bench.py --skip 6 --batch 4 --profiled 0 --batch 2",
)
OTHERS = {
    "uv run apps/bench.py --batch 4": "--batch",
    "uv run benchmarks/bench.py --batch 2 --offload --model a": "--model, --offload",
    "uv run benchmarks/copies.py --batch 2": "the script",
}


@pytest.mark.parametrize("command", ALIKE)
def test_commands_of_the_same_run_compare_however_they_are_written(command: str) -> None:
    assert compare(record(), record() | {"command": command}) == []


@pytest.mark.parametrize("command", OTHERS)
def test_runs_of_something_else_do_not_compare(command: str) -> None:
    with pytest.raises(ValueError) as told:
        compare(record(), record() | {"command": command})
    first, *lines = str(told.value).splitlines()
    assert f"of something else ({OTHERS[command]}):" in first
    assert lines == [f"it is of  {command}", f"this is  {record()['command']}"]


def test_the_first_steps_do_not_count_but_for_memory() -> None:
    names = ("tokens_per_second", "tokens_per_second_per_rank", "tflops_per_rank", "seconds", "data_seconds")
    rows = [dict.fromkeys(names, value) | {"memory_gb": 9.0 - value} for value in (1.0, 2.0, 3.0, 7.0)]
    told = summarize(rows, 1)
    assert (told["steps"], told["seconds"], told["memory_gb"], told["data_seconds_most"]) == (3, 3.0, 8.0, 7.0)
    with pytest.raises(ValueError, match="4 steps are no more than the 4 to skip: run longer"):
        summarize(rows, 4)
