"""The floors of the house: what each package may import, and that no module keeps state."""

import ast
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("omni_mesh", "omni_parallel", "omni_data", "omni_ckpt", "omni_models")
LIBRARIES = {"torch", "transformers", "datasets", "safetensors", "tyro", "pyarrow", "tokenizers"}
WATCHED = {*PACKAGES, *LIBRARIES, "PIL", "av", "soundfile", "soxr"}
MAY_IMPORT = {
    "omni_mesh": {"torch"},
    "omni_parallel": {"torch", "omni_mesh"},
    "omni_data": set(),
    "omni_ckpt": {"torch", "safetensors"},
    "omni_models": {"torch", "transformers", "safetensors", "tokenizers", "PIL"},
}
"""Of `WATCHED`, what a package may pull in with all its names; omni_data reads its libraries only when a source needs
them."""
SOURCES = sorted([*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("apps/*.py")])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_pulls_in_only_what_its_floor_allows(package: str) -> None:
    every = f"[getattr({package}, name) for name in dir({package})]"
    code = f"import sys, {package}; {every}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert set(loaded) & WATCHED - {package} <= MAY_IMPORT[package]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_declares_what_it_imports(package: str) -> None:
    folder = ROOT / "packages" / package.replace("_", "-")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    declared = {
        line.split(">")[0].split("[")[0].replace("-", "_")
        for line in [*project["dependencies"], *chain(*project.get("optional-dependencies", {}).values())]
    }
    brought = {
        "pyarrow": "datasets",
        "filelock": "datasets",
        "fsspec": "datasets",
        "flash_attn": "flash_attn_4",
        "triton": "torch",
        "upath": "universal_pathlib",
        "PIL": "pillow",
    }
    imported = {
        name.split(".")[0]
        for path in folder.glob("src/**/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    outside = {
        name for name in imported if name not in sys.stdlib_module_names and name not in (package, "", "__main__")
    }
    assert {name if name in declared else brought.get(name, name) for name in outside} <= declared


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_keeps_state(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Global)]
    mutable = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)
    names = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, mutable)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    written = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript | ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in names
        and (isinstance(node.ctx, ast.Store | ast.Del) or getattr(node, "attr", "") in _MUTATORS)
    ]
    assert not written


_MUTATORS = {"append", "extend", "add", "update", "setdefault", "pop", "popitem", "clear", "remove", "insert"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_one_idea(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no docstring says what the idea is"
    assert len(text.splitlines()) <= 300


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_who_starts_ranks_and_who_is_one_reads_the_environment(path: Path) -> None:
    if path.name not in ("started.py", "launching.py", "trackers.py"):  # The last asks what a service would read.
        used = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not used & {"os.environ", "os.getenv"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("apps/*.py")), ids=lambda path: path.name)
def test_an_app_reads_from_top_to_bottom(path: Path) -> None:
    tree = ast.parse(path.read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    if "main" in functions:
        assert len(path.read_text().splitlines()) < 150
