"""What apps/plan.py says of each recipe, on the GPUs that it names: a table.

uv run benchmarks/recipes.py            print it
uv run benchmarks/recipes.py --write    put it between the marks in recipes/README.md
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import tyro

sys.path.insert(0, str(Path(__file__).parent.parent / "apps"))

from outlook import Outlook, Theatre, choice_asked, look_ahead
from request import Config as Run
from request_chats import Config as Chats
from request_media import Config as Media
from settings import read_settings
from subject import Config as Asked
from subject import read_subject

HERE: Final = Path(__file__).parent.parent / "recipes"
DOC: Final = HERE / "README.md"
MARKED: Final = re.compile(r"(<!-- recipes -->\n).*?(<!-- /recipes -->)", re.DOTALL)
NEEDS: Final = re.compile(r"# Needs (?P<gpus>\d+) x H200, (?P<state>\d+) GB of state on each\. (?P<told>.*\.)\n")
KINDS: Final = MappingProxyType({"pretrain": "Pretraining", "sft": "Finetuning on chats", "omni": "Chats with media"})
"""Folders of recipes, and what they are for."""


@dataclass(frozen=True, slots=True)
class Config:
    """What to do with the table."""

    write: bool = False
    """Put it into recipes/README.md."""


def recipes_of(kind: str) -> list[Path]:
    """The recipes of a kind. Effect: looks at the disk."""
    return sorted(path for path in (HERE / kind).glob("*.yaml") if path.stem != "common")


def run_of(path: Path) -> Run:
    """The run that a recipe asks for. Effect: reads files."""
    if path.parent.name == "pretrain":
        return read_settings(Run, [path])
    return read_settings(Chats if path.parent.name == "sft" else Media, [path]).run


def state_gb(run: Run, params: int, ranks: int) -> int:
    """Master weights, gradients and two moments on each of the ranks that share them, 10^9 bytes. Pure."""
    moment = 2 if run.optim.state_dtype == "bfloat16" else 4
    return round(params * (8 + 2 * moment) / ranks / 1e9)


@dataclass(frozen=True, slots=True)
class Planned:
    """What was found of a recipe: 10^9 bytes of a GPU."""

    state: int
    outlook: Outlook

    @property
    def peak(self) -> float:
        """The most that is held."""
        return self.outlook.footprint.peak.total / 1e9


def plan_recipe(path: Path) -> Planned:
    """How a recipe would go on its GPUs, its rows of text alone. Effect: reads files.

    Raises:
        ValueError: if it cannot.
    """
    needs = needs_of(path)
    run = replace(run_of(path), weights=None, tokenizer=None, data=("builtin",), virtual_shards=None)
    subject = read_subject(Asked(run=run, gpus=int(needs["gpus"])))
    if subject.wrong:
        raise ValueError("\n".join(subject.wrong))
    outlook = look_ahead(Theatre(subject), subject.spec, choice_asked(subject))
    return Planned(state_gb(run, subject.facts.num_params, subject.spec.fsdp), outlook)


def needs_of(path: Path) -> re.Match[str]:
    """What the first line of a recipe says. Effect: reads it. Raises `ValueError` if it says nothing of the kind."""
    needs = NEEDS.match(path.read_text())
    if not needs:
        raise ValueError(f"{path}: the first line must say '# Needs N x H200, N GB of state on each. ...'")
    return needs


def row_of(path: Path, planned: Planned) -> str:
    """The row of a recipe. Effect: reads its first line. Raises `ValueError` if that is wrong, or it does not fit."""
    needs = needs_of(path)
    if not planned.outlook.fits:
        raise ValueError(f"{path}: {planned.peak:.0f} GB do not fit.")
    if int(needs["state"]) != planned.state:
        raise ValueError(f"{path}: the first line says {needs['state']} GB of state, and it is {planned.state} GB.")
    link = f"[{path.stem}]({path.parent.name}/{path.name})"
    cells = (link, needs["gpus"], f"{needs['state']} GB", f"{planned.peak:.0f} GB", needs["told"])
    return f"| {' | '.join(cells)} |\n"


def make_tables(kinds: Iterable[str]) -> str:
    """A table for each kind of recipes. Effect: reads files."""
    tables = []
    for kind in kinds:
        rows = [row_of(path, plan_recipe(path)) for path in recipes_of(kind)]
        tables.append(f"| {KINDS[kind]} | GPUs | state | peak | |\n|---|---|---|---|---|\n{''.join(rows)}")
    return "\n".join(tables)


def main(config: Config) -> None:
    """Print the tables, or write them. Effect: reads recipes, writes recipes/README.md if asked to."""
    tables = make_tables(KINDS)
    if config.write:
        DOC.write_text(MARKED.sub(lambda marks: f"{marks[1]}{tables}{marks[2]}", DOC.read_text()))
    else:
        print(tables, end="")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
