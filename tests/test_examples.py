"""What the documents say is so: their examples run, their links lead somewhere, their commands parse.

The Python blocks of one document are one script, as a reader would type them, run in a process of its own. A block
after `<!-- excerpt FILE -->` is not run: it has to be in that file, where a line `...` stands for what is left out. One
after `<!-- run by FILE -->` is run by that file of tests, which says more of what it does.
Blocks without a language show lines of a script, or what is typed elsewhere; commands of ours in them are parsed.
"""

import contextlib
import doctest
import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest
import tyro
from settings import ask
from starting import run_script
from test_parity import CUTS

ROOT = Path(__file__).parent.parent
FOLDERS = ("", "docs/", "docs/*/", "recipes/", "benchmarks/", "packages/*/")
DOCUMENTS = sorted(path for folder in FOLDERS for path in ROOT.glob(f"{folder}*.md"))
TESTED_ELSEWHERE = {ROOT / "packages/omni-ckpt/README.md"}
"""Documents whose package runs their examples, and says more of what they do."""

BLOCK = re.compile(
    r"(?:<!-- (?:excerpt (?P<file>\S+)|run by (?P<by>\S+)) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL
)
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
COMMAND = re.compile(r"(?:uv run|torchrun)[^`|\n]*?(?P<file>(?:apps|benchmarks)/\w+\.py)(?P<args>[^`|\n]*)")

SCRIPTS = {
    path: "\n".join(block["code"] for block in BLOCK.finditer(path.read_text()) if not (block["file"] or block["by"]))
    for path in DOCUMENTS
}
EXCERPTS = [(path, block) for path in DOCUMENTS for block in BLOCK.finditer(path.read_text()) if block["file"]]
LINKS = [(path, link["target"]) for path in DOCUMENTS for link in LINK.finditer(path.read_text())]
COMMANDS = [
    (path, command["file"], command["args"])
    for path in DOCUMENTS
    for command in COMMAND.finditer(path.read_text().replace("\\\n", " "))
]


def name(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value).strip()


@pytest.mark.parametrize("path", [p for p, script in SCRIPTS.items() if script and p not in TESTED_ELSEWHERE], ids=name)
def test_examples_run(path: Path, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(SCRIPTS[path])
    done = run_script(script, folder=tmp_path, warn=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout, "an example shows something"


def test_examples_that_are_tested_elsewhere_are() -> None:
    for path in TESTED_ELSEWHERE:
        assert "README.md" in (path.parent / "tests" / "test_readme.py").read_text()
    for path in DOCUMENTS:
        for block in BLOCK.finditer(path.read_text()):
            assert not block["by"] or f'"{path.parent.name}"' in (ROOT / block["by"]).read_text()


@pytest.mark.parametrize(("path", "block"), EXCERPTS, ids=lambda value: name(value) if isinstance(value, Path) else "")
def test_excerpts_are_in_the_file_that_they_name(path: Path, block: re.Match[str]) -> None:
    lines = (ROOT / block["file"]).read_text().splitlines()
    for piece in re.split(r"^\.\.\.\n", block["code"], flags=re.MULTILINE):
        wanted = dedent(piece).strip("\n")
        size = len(wanted.splitlines())
        windows = (dedent("\n".join(lines[start : start + size])) for start in range(len(lines) - size + 1))
        assert wanted in windows, f"{block['file']} has no such lines:\n{wanted}"


def test_the_readme_shows_excerpts_of_the_script() -> None:
    shown = [block["file"] for path, block in EXCERPTS if path == ROOT / "README.md"]
    assert shown == ["apps/pretrain.py", "apps/place.py"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_local_links_lead_somewhere(path: Path) -> None:
    local = [target.split("#")[0] for source, target in LINKS if source == path and "://" not in target]
    assert not [target for target in local if not (path.parent / target).exists()]


@pytest.mark.parametrize(("path", "file", "args"), COMMANDS, ids=name)
def test_commands_parse(path: Path, file: str, args: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(args, comments=True)
    parse(file, words, capsys)


def parse(file: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Parse `words` as the script would, without running it."""
    module = load(ROOT / file)
    try:
        if "--config" in words:
            with contextlib.chdir(ROOT):
                ask(module.Config, module.__doc__, args=words)
        else:
            tyro.cli(module.Config, args=words, description=module.__doc__)
    except SystemExit as left:
        assert left.code == 0 and {"--help", "--print-config"} & {*words}, capsys.readouterr().err


@pytest.mark.parametrize(
    "path", [p for p in sorted(ROOT.glob("apps/*.py")) if "uv run" in p.read_text().split('"""')[1]], ids=name
)
def test_examples_of_a_manual_stay_on_lines_of_their_own(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(path.stem)
    with pytest.raises(SystemExit):
        tyro.cli(module.Config, args=["--help"], description=module.__doc__)
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    examples = [line.strip() for line in (module.__doc__ or "").splitlines() if COMMAND.search(line)]
    assert examples
    assert not [example for example in examples if example not in shown]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses look their module up.
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def test_there_are_documents_and_commands() -> None:
    assert len(DOCUMENTS) > 10 and len(COMMANDS) > 10 and len(LINKS) > 10


def test_the_readme_counts_the_cuts_of_the_parity_table() -> None:
    assert f"{len(CUTS)} ways" in (ROOT / "README.md").read_text()


WITH_EXAMPLES = [
    path
    for path in sorted([*ROOT.glob("apps/*.py"), *ROOT.glob("packages/*/src/*/*.py")])
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=name)
def test_examples_in_docstrings_are_true(path: Path) -> None:
    package = "" if path.parent.name == "apps" else f"{path.parent.name}."
    found = doctest.testmod(importlib.import_module(package + path.stem))
    assert found.failed == 0 < found.attempted
