"""Flags and names are there at once: what takes seconds to import is imported by what needs it."""

import ast
import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from preflight import check_flags
from request_infer import Config

ROOT = Path(__file__).parent.parent
PACKAGES = ("omni_mesh", "omni_parallel", "omni_data", "omni_ckpt", "omni_models")
LAZY = [package for package in PACKAGES if package != "omni_data"]
"""omni_data needs no torch at all."""
ANSWERS = re.compile(r"^    (answer|check_flags)\(", re.MULTILINE)
STARTED = sorted(path for path in ROOT.glob("apps/*.py") if ANSWERS.search(path.read_text()))
HEAVY = {"torch", "transformers", "datasets", "tokenizers", "safetensors", "huggingface_hub", "pyarrow"}


def modules_of(code: str) -> set[str]:
    """The packages that are imported once `code` has run."""
    tell = "import sys; print('MODULES', *{name.split('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", f"import atexit\natexit.register(lambda: exec({tell!r}))\n{code}"]
    done = subprocess.run(command, cwd=ROOT / "apps", capture_output=True, text=True, check=False)
    assert "MODULES" in done.stdout, done.stderr
    return set(done.stdout.split("MODULES")[1].split())


@pytest.mark.parametrize("flag", ["--help", "--print-config", "--stesp"])
@pytest.mark.parametrize("path", STARTED, ids=lambda path: path.name)
def test_flags_are_answered_before_torch_is_imported(path: Path, flag: str) -> None:
    code = f"import runpy, sys\nsys.argv = ['app', {flag!r}]\nsys.path.insert(0, '.')"
    loaded = modules_of(f"{code}\nrunpy.run_path({str(path)!r}, run_name='__main__')")
    assert "tyro" in loaded and not loaded & HEAVY


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_alone_needs_no_torch(package: str) -> None:
    assert not modules_of(f"import {package}") & HEAVY


@pytest.mark.parametrize("package", LAZY)
def test_a_name_is_where_the_type_checker_finds_it(package: str) -> None:
    module = importlib.import_module(package)
    (block,) = [node for node in ast.parse(Path(str(module.__file__)).read_text()).body if isinstance(node, ast.If)]
    said = {
        (f"{node.module}", name.name) for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names
    }
    homes = {(f"{package}.{home}", name) for home, names in module._HOMES.items() for name in names.split()}
    assert said == homes
    for home, name in homes:
        assert getattr(module, name) is getattr(importlib.import_module(home), name)
    # A module is set on its package when it is imported, in place of what has its name.
    assert not {name for _, name in homes} & {path.stem for path in Path(str(module.__file__)).parent.iterdir()}
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'no_such'"):
        module.no_such  # noqa: B018


def test_all_apps_that_load_torch_are_seen() -> None:
    assert {path.name for path in STARTED} == {
        f"{app}.py" for app in ("pretrain", "sft", "omni", "bench", "infer", "merge")
    }


@pytest.mark.parametrize("who", ["a person", "a file", "a rank"])
def test_a_person_is_told_why_nothing_is_seen_for_seconds(
    who: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["infer.py", "model"])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: who != "a file")
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in ranks.items() if who == "a rank" else ():
        monkeypatch.setenv(name, value)
    check_flags(Config, None)
    assert capsys.readouterr().err == ("loading torch and transformers ...\n" if who == "a person" else "")


MANY_LINES = """
from dataclasses import dataclass
from preflight import run

@dataclass(frozen=True)
class Config:
    lines: int = 100_000

def main(config):
    for line in range(config.lines):
        print(line)

run(main, Config, None)
"""


def test_whoever_reads_no_further_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "many.py").write_text(MANY_LINES)
    command = [sys.executable, str(tmp_path / "many.py")]
    env = os.environ | {"PYTHONPATH": str(ROOT / "apps")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 128 + signal.SIGPIPE)
