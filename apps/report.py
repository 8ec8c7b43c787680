"""Look at runs: one page, a file of its own, with their curves, settings and numbers side by side.

    uv run apps/report.py runs/pretrain                            report.html in the folder of the run
    uv run apps/report.py runs/a runs/b --to compared.html         several on the same axes
    uv run apps/report.py runs/a runs/b --to a.html --png charts   each chart as a picture, too

It reads what runs leave (metrics.jsonl, eval.jsonl, skipped.jsonl, config.yaml, checkpoints), while they run, too, and
needs no GPU and no network. docs/report.md says what is on the page.
"""

import early  # noqa: F401  From here on Ctrl-C ends it with a word.

# isort: split
from dataclasses import dataclass
from pathlib import Path

import tyro
from history import read_histories
from panels import panels_of
from pictures import make_pictures
from preflight import run
from redact import without_secrets
from runs_page import make_page


@dataclass(frozen=True, slots=True)
class Config:
    """What to look at."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs. The settings of the first are those that others are compared with."""
    to: Path | None = None
    """The page. Left out: report.html in the folder of the run, if it is one; report.html here, if they are several."""
    png: Path | None = None
    """A folder for each chart as a picture. Needs `uv sync --extra png`."""


def main(config: Config) -> None:
    """Make the page. Effect: reads runs, writes files, prints where they are.

    Raises:
        ValueError: if there is nothing to show, or nowhere to put it.
    """
    if not config.runs:
        raise ValueError("name the folder of a run, or of several: uv run apps/report.py runs/pretrain")
    runs = read_histories(config.runs)
    panels = panels_of(runs)
    page = config.to or (config.runs[0] if len(config.runs) == 1 else Path()) / "report.html"
    files = {page: make_page(runs, panels).encode()}
    if config.png:
        files |= {config.png / name: picture for name, picture in make_pictures(panels).items()}
    for path, content in files.items():
        write(path, content)
    for one in runs:
        for warning in one.warnings:
            print(without_secrets(f"{one.label}: {warning}"))
    print(without_secrets(f"page      {page}"))
    if config.png:
        print(f"pictures  {len(files) - 1} in {config.png}")


def write(path: Path, content: bytes) -> None:
    """Effect: writes `content` to `path`, and makes its folder.

    Raises:
        ValueError: if it cannot be.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as problem:
        raise ValueError(
            f"{path} cannot be written: {problem.strerror}. Give another place with --to or --png."
        ) from problem


if __name__ == "__main__":
    run(main, Config, __doc__)
