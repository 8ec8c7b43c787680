"""The image in `docker/` is made of files that are there, installs what the README needs, and is not run by root.

No engine is asked: this is what the files say.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pretrain
import pytest
import yaml
from settings import ask
from starting import ROOT, alone

FILE = ROOT / "docker" / "Dockerfile"
STEPS = [
    (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1])
    for line in re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    if line
]
"""Instructions and what follows them, comments and line breaks taken out."""
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())


def copied(upto: int | None = None) -> list[tuple[str, str]]:
    """Sources and targets of COPY, of the first so many instructions."""
    pairs = [tuple(words.split()) for name, words in STEPS[:upto] if name == "COPY"]
    assert all(len(pair) == 2 for pair in pairs)
    return pairs  # pyright: ignore[reportReturnType]


def is_left_out(path: str) -> bool:
    """Whether `.dockerignore` leaves `path` out, or a folder that it is in: the last pattern that fits says so."""
    parts = path.split("/")
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        anywhere = pattern.removeprefix("**/")
        fits = any(fnmatch(one, pattern) and one.count("/") == pattern.count("/") for one in above)
        if fits or (anywhere != pattern and anywhere in parts):
            out = not line.startswith("!")
    return out


def test_what_is_copied_is_there_and_is_not_left_out() -> None:
    for source, _ in copied():
        files = [ROOT / source] if (ROOT / source).is_file() else [*(ROOT / source).rglob("*.py")]
        files += [*(ROOT / source).rglob("*.yaml"), *(ROOT / source).rglob("README.md")]
        sent = [file for file in files if not is_left_out(str(file.relative_to(ROOT)))]
        assert sent, source
        assert {file for file in set(files) - set(sent) if "tests" not in file.parts} == set()
    for other in (".git/config", "uv.lock", "runs/a", ".venv/bin/python", "apps/__pycache__/a.pyc", ".env"):
        assert is_left_out(other)
    assert {source for source, _ in copied()} >= {"apps", "packages", "recipes", "pyproject.toml"}


def syncs() -> list[int]:
    """Instructions that install."""
    return [place for place, (name, words) in enumerate(STEPS) if name == "RUN" and "uv sync" in words]


def test_what_others_wrote_is_installed_before_our_code_is_copied_and_nothing_for_development() -> None:
    first, second = syncs()
    assert "packages" not in dict(copied(first)) and "apps" not in dict(copied(first))
    members = {f"packages/{path.name}/pyproject.toml" for path in (ROOT / "packages").iterdir()}
    assert {source for source, _ in copied(first)} == members | {"pyproject.toml"}
    assert all(f"{target}pyproject.toml" == source for source, target in copied(first) if source in members)
    given = [shlex.split(STEPS[place][1].split("uv sync")[1]) for place in (first, second)]
    assert given == [
        ["--all-packages", "--no-dev", "--no-install-workspace", "$EXTRAS"],
        ["--all-packages", "--no-dev", "$EXTRAS"],
    ]
    assert all("--mount=type=cache,target=/uv-cache" in STEPS[place][1] for place in (first, second))


def arguments() -> dict[str, str]:
    return dict(words.split("=", 1) for name, words in STEPS if name == "ARG")


def test_extras_are_those_of_packages_and_the_one_of_the_readme_is_among_them() -> None:
    words = shlex.split(arguments()["EXTRAS"].strip('"'))
    assert words[::2] == ["--extra"] * (len(words) // 2)
    known = set[str]()
    for path in ROOT.glob("packages/*/pyproject.toml"):
        known |= set(tomllib.loads(path.read_text())["project"].get("optional-dependencies", {}))
    readme = re.findall(r"uv sync --all-packages --extra (\w+)", (ROOT / "README.md").read_text())
    assert set(readme) <= set(words[1::2]) <= known


@pytest.mark.skipif(shutil.which("uv") is None, reason="asks uv")
def test_the_layer_of_what_others_wrote_is_resolved_from_what_is_copied_by_then(tmp_path: Path) -> None:
    for source, target in copied(syncs()[0]):
        (tmp_path / target).mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, tmp_path / target)
    words = shlex.split(STEPS[syncs()[0]][1].split("uv sync")[1].replace("$EXTRAS", arguments()["EXTRAS"].strip('"')))
    command = ["uv", "sync", *words, "--dry-run", "--python", sys.executable]
    env = {name: value for name, value in alone().items() if not name.startswith("VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    would = set(re.findall(r"^ \+ ([\w-]+)==", done.stderr, re.MULTILINE))
    assert {"torch", "transformers", "tyro", "flash-attn-4", "pillow", "peft"} <= would
    assert not {"pytest", "ruff", "omni-mesh"} & would


def test_base_and_uv_are_pinned_and_uv_builds_our_packages() -> None:
    (base,) = [words for name, words in STEPS if name == "FROM"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    python = tuple(map(int, base.removeprefix("python:").split("-")[0].split(".")))
    assert python >= (3, 11)
    (uv,) = re.findall(r"uv==(\d+\.\d+)\.\d+", FILE.read_text())
    for path in ROOT.glob("packages/*/pyproject.toml"):
        least, below = re.findall(r"\d+\.\d+", tomllib.loads(path.read_text())["build-system"]["requires"][0])
        assert least == uv < below


def test_it_runs_as_a_user_who_is_not_root_and_has_a_place_to_write() -> None:
    users = [words for name, words in STEPS if name == "USER"]
    assert users == ["${UID}"] and int(arguments()["UID"]) > 0
    assert [name for name, _ in STEPS][-3:] == ["USER", "ENTRYPOINT", "CMD"]
    assert "--owner omni /omni/runs" in FILE.read_text()
    assert not re.search(r"(?i)password|secret|token|api.?key", FILE.read_text())


def test_what_it_runs_is_parsed_by_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict(STEPS)
    (interpreter,), (app,) = json.loads(given["ENTRYPOINT"]), json.loads(given["CMD"])
    assert (interpreter, app) == ("python", "apps/pretrain.py")
    assert (ROOT / app).exists() and dict(copied())["apps"] == "apps" and given["WORKDIR"] == "/omni"
    monkeypatch.chdir(ROOT)
    (service,) = COMPOSE["services"].values()
    for words in (service["command"], shown()):
        assert words[0] == app
        ask(pretrain.Config, pretrain.__doc__, args=words[1:])


def shown() -> list[str]:
    """What the first lines of compose.yaml run."""
    (line,) = re.findall(r"run --build --rm omni (.*)", (ROOT / "docker" / "compose.yaml").read_text())
    return shlex.split(line)


def test_compose_builds_this_image_and_gives_it_gpus_memory_and_places() -> None:
    (service,) = COMPOSE["services"].values()
    build = service["build"]
    assert (ROOT / "docker" / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]) == FILE
    assert build["args"].keys() == arguments().keys()
    assert arguments()["EXTRAS"].strip('"') in build["args"]["EXTRAS"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert service["shm_size"] and service["init"] is True
    places = {volume.rsplit(":", 2 if volume.endswith(":ro") else 1)[1] for volume in service["volumes"]}
    assert places == {"/data", "/omni/runs", "/hub"}
    assert set(COMPOSE["volumes"]) <= {volume.split(":")[0] for volume in service["volumes"]}
