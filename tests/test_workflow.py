"""The commands of docs/workflow.md run one after another, on a hub of this machine, and do what the page says."""

import contextlib
import io
import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
import tyro
from hub import serve
from ranks import Run
from transformers import AutoModelForCausalLM
from workflow_ranks import train_in

from omni_data import builtin_corpus, read_tokenizer
from omni_models import read_config

PAGE = Path(__file__).parent.parent / "docs" / "workflow.md"
SMALLER = {"8192": "64", "8": "2", "40": "8"}
"""What is shorter than on the page."""
COMMANDS = [
    shlex.split(line.removeprefix("uv run "))
    for block in re.findall(r"```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


@pytest.fixture(scope="module")
def told(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Where all of it ran, and what each command said."""
    folder = tmp_path_factory.mktemp("workflow")
    corpus = [corpus[i] for corpus in [builtin_corpus()] for i in range(200)]
    model = write_model(folder / "my-model")
    for name, texts in {"my": corpus[:150], "held": corpus[150:160]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": corpus}), file)
    files = {
        "Qwen/Qwen3-0.6B": {path.name: path.read_bytes() for path in model.iterdir()},
        "datasets/HuggingFaceFW/fineweb-edu": {"sample/10BT/000_00000.parquet": file.getvalue(), "README.md": b"Text."},
    }
    said = []
    with serve(files) as hub:
        for name, *words in COMMANDS:
            args = [SMALLER.get(word, word) for word in words]
            args += ["--mirror", hub.url] if name.endswith("download.py") else []
            said.append(obey(name, args, folder, run))
    return folder, said


def write_model(folder: Path) -> Path:
    """A directory as `save_pretrained` writes it, with a tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(read_config("tiny")).save_pretrained(folder)
    read_tokenizer("bytes").save(folder)
    return folder


def obey(name: str, args: list[str], folder: Path, run: Run) -> str:
    """What the command said, run in `folder`."""
    app = import_module(Path(name).stem)
    if app.__name__ == "pretrain":
        return run(train_in, 2, folder, tyro.cli(app.Config, args=args))[0]
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        app.main(tyro.cli(app.Config, args=args))
    return out.getvalue()


def rows_of(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_page_has_the_whole_way() -> None:
    apps = [Path(name).stem for name, *_ in COMMANDS]
    made = ["merge", "infer"]
    assert apps[:5] == ["download", "download", "pretrain", *made]
    assert apps[5:] == ["plan", "pretrain", "pretrain", "report", "checkpoint", "checkpoint", *made]


def test_what_is_fetched_is_trained_on_and_answers(told: tuple[Path, list[str]]) -> None:
    folder, said = told
    assert f"--data {folder / 'data/fineweb'}" in said[0] and f"--model {folder / 'models/qwen3'}" in said[1]
    assert [path.name for path in (folder / "data/fineweb").rglob("*.*") if ".cache" not in path.parts] == [
        "000_00000.parquet"
    ]
    rows = rows_of(folder / "runs/fineweb/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 21))
    start, ten = (
        AutoModelForCausalLM.from_pretrained(folder / name).state_dict()
        for name in ("models/qwen3", "runs/fineweb/merged-10")
    )
    assert start.keys() == ten.keys() and not torch.equal(start["lm_head.weight"], ten["lm_head.weight"])
    assert said[4].startswith("Water is")


def test_a_run_of_ones_own_goes_on_is_reported_and_answers(told: tuple[Path, list[str]]) -> None:
    folder, said = told
    _, _, _, _, _, plan, first, second, _, verified, inspected, _, answer = said
    assert "memory    fits" in plan
    assert "step 10/20" in first and "step 11/20" not in first and "step 20/20" in second and "step 10/20" not in second
    assert [row["step"] for row in rows_of(folder / "runs/mine/metrics.jsonl")] == list(range(1, 21))
    held = rows_of(folder / "runs/mine/eval.jsonl")
    assert [row["step"] for row in held] == [10, 20] and held[1]["loss"] < held[0]["loss"]
    assert "held out" in (folder / "runs/mine/report.html").read_text()
    assert "step-00000020" in verified and "model.embed_tokens.weight" in inspected
    merged = AutoModelForCausalLM.from_pretrained(folder / "runs/mine/merged", dtype="auto")
    assert merged.dtype == torch.bfloat16 and answer.startswith("Water is")
