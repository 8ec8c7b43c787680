"""Each package builds, and its wheel imports where nothing else of ours is but what it declares.

`.ci/wheels` goes on to run the package's own tests there.
"""

import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(path.name for path in (ROOT / "packages").iterdir())


def uv(*args: str | Path) -> str:
    done = subprocess.run(["uv", *map(str, args)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of every package."""
    folder = tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        uv("build", "--quiet", "--package", package, "--wheel", "--out-dir", folder)
    assert len(list(folder.glob("*.whl"))) == len(PACKAGES)
    return folder


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_installs_and_imports_with_what_it_declares(package: str, wheels: Path, tmp_path: Path) -> None:
    uv("venv", "--quiet", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    declared = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]["dependencies"]
    ours = {package} | {name for name in declared if name.startswith("omni-")}
    # By file: others have published packages of these names.
    files = [wheels / f"{name.replace('-', '_')}-0.1.0-py3-none-any.whl" for name in sorted(ours)]
    uv("pip", "install", "--quiet", "--python", python, *files)
    module = package.replace("-", "_")
    names = f"import {module}; print(all(hasattr({module}, name) for name in dir({module})))"
    assert subprocess.run([python, "-c", names], capture_output=True, text=True, check=True).stdout == "True\n"
    installed = {line.split()[0] for line in uv("pip", "list", "--python", python).splitlines()}
    assert {name for name in installed if name.startswith("omni-")} == ours
