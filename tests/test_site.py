"""The site of the documents is built without a warning, its links lead somewhere, and it has all that is exported."""

import ast
import html
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("omni_mesh", "omni_parallel", "omni_data", "omni_ckpt", "omni_models")
HAS_SPHINX = pytest.mark.skipif(find_spec("sphinx") is None, reason="needs the group docs: uv run --group docs pytest")
ADDRESS = re.compile(r"<(?P<tag>\w+)\b[^>]*?\b(?:href|src)=\"(?P<to>[^\"]*)\"")
SHOWN = re.compile(
    r'<dt class="sig sig-object py" id="(?P<name>[\w.]+)">(?P<head>.*?)</dt>\s*<dd>(?P<body>.*?)</dd>', re.S
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    how = ["-W", "--keep-going", "-q", "-c", ROOT / "docs/site", "-d", folder / "doctrees", ROOT, folder / "html"]
    done = subprocess.run([sys.executable, "-m", "sphinx", *how], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in site.rglob("*.html")}


@HAS_SPHINX
def test_every_name_is_on_the_page_of_its_package_once(pages: dict[Path, str], site: Path) -> None:
    shown = [(path, found) for path, text in pages.items() for found in SHOWN.finditer(text)]
    written = Counter(found["name"] for _, found in shown)
    for package in PACKAGES:
        page = site / "packages" / package.replace("_", "-") / "README.html"
        on_page = {found["name"]: found for path, found in shown if path == page}
        docs = docstrings(package)
        for name in exported(package):
            full = f"{package}.{name}"
            assert written[full] == 1 and full in on_page, f"{full} is on {written[full]} pages"
            doc, is_function = docs[name]
            assert letters(doc) in letters(as_text(on_page[full]["body"])), f"{full} has another docstring there"
            assert not is_function or "sig-paren" in on_page[full]["head"], f"{full} has no signature there"


@HAS_SPHINX
def test_links_of_the_site_lead_somewhere(pages: dict[Path, str]) -> None:
    names = {path: {*re.findall(r'\bid="([^"]*)"', text)} for path, text in pages.items()}
    lost = [f"{path}: {to}" for path, _, to in addresses(pages) if "://" not in to and not leads(path, to, names)]
    assert not lost, "\n".join(lost)


@HAS_SPHINX
def test_a_page_of_the_site_fetches_nothing(pages: dict[Path, str], site: Path) -> None:
    fetched = [f"{path}: {to}" for path, tag, to in addresses(pages) if tag != "a" and "//" in to]
    assert not fetched, "\n".join(fetched)
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert "url(http" not in styles and "@import" not in styles
    assert not [path for path, text in pages.items() if str(ROOT) in text], "a path of this machine"


def test_messages_of_the_page_of_trouble_are_in_the_source() -> None:
    lines = (ROOT / "docs/troubleshooting.md").read_text().splitlines()
    told = [found[1] for line in lines if (found := re.match(r"\| `(.+?)` \|", line))]
    assert len(told) > 50 and len({*told}) == len(told)
    said = {message for message in messages() if " " in message}
    lost = [piece for piece in told if not any(fits(piece, message) for message in said)]
    assert not lost, "\n".join(lost)


def fits(piece: str, message: str) -> bool:
    """Whether the parts of `piece`, between dots that stand for anything, are in `message` in their order."""
    for part in piece.split("..."):
        _, found, message = message.partition(part.strip())
        if not found:
            return False
    return True


def messages() -> Iterator[str]:
    """Every text in the source that is no docstring; what is filled in is left out."""
    for path in [*ROOT.glob("apps/*.py"), *ROOT.glob("packages/*/src/*/*.py")]:
        tree = ast.parse(path.read_text())
        alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
                yield node.value


def exported(package: str) -> set[str]:
    """The public names of a package, by what it says of itself."""
    module = import_module(package)
    homes = " ".join(getattr(module, "_HOMES", {}).values()).split()
    return {*homes, *getattr(module, "__all__", ())}


def docstrings(package: str) -> dict[str, tuple[str, bool]]:
    """The first line of what is said of each name of a package, and whether it is a function; of those that several
    modules have, in the module that its `__init__` names."""
    (init,) = ROOT.glob(f"packages/*/src/{package}/__init__.py")
    modules = {path.stem: dict(described(ast.parse(path.read_text()).body)) for path in init.parent.glob("*.py")}
    found = {name: said for names in modules.values() for name, said in names.items()}
    for node in ast.walk(ast.parse(init.read_text())):
        home = modules.get((node.module or "").rpartition(".")[2], {}) if isinstance(node, ast.ImportFrom) else {}
        found |= {alias.name: home[alias.name] for alias in getattr(node, "names", ()) if alias.name in home}
    return found


def described(body: list[ast.stmt]) -> Iterator[tuple[str, tuple[str, bool]]]:
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            doc = ast.get_docstring(node) or ""
            yield node.name, (doc.partition("\n")[0], isinstance(node, ast.FunctionDef))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            said = after.value if isinstance(after, ast.Expr) else None
            doc = said.value if isinstance(said, ast.Constant) and isinstance(said.value, str) else ""
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield ast.unparse(target), (doc.partition("\n")[0], False)


def as_text(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", markup))


def letters(text: str) -> str:
    return re.sub(r"\W+", "", text)


def addresses(pages: dict[Path, str]) -> Iterator[tuple[Path, str, str]]:
    for path, text in pages.items():
        yield from ((path, found["tag"], html.unescape(found["to"])) for found in ADDRESS.finditer(text))


def leads(page: Path, to: str, names: dict[Path, set[str]]) -> bool:
    file, _, name = unquote(to.partition("?")[0] if "#" not in to else to).partition("#")
    target = (page.parent / file.partition("?")[0]).resolve() if file else page
    return target.exists() and (not name or target not in names or name in names[target])
