"""How far apps/plan.py is from the records of this folder: a table of what was predicted and what was measured.

uv run benchmarks/plans.py            print it
uv run benchmarks/plans.py --write    put it between the marks in docs/plan.md
"""

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Final

import tyro

sys.path.insert(0, str(Path(__file__).parent.parent / "apps"))

from flags import parse
from measuring import Config as Measured
from outlook import Outlook, Theatre, choice_asked, look_ahead
from subject import Config as Planned
from subject import Subject, read_subject
from table import read_records

from omni_mesh import resolve_mesh
from omni_models import ModelFacts, read_config

HERE: Final = Path(__file__).parent
DOC: Final = HERE.parent / "docs" / "plan.md"
MARKED: Final = re.compile(r"(<!-- plans -->\n).*?(<!-- /plans -->)", re.DOTALL)
_OLD = "before there were kernels for norms, gates and rotations, and attention of sdpa"
_MEDIA = "towers of media, which are not planned yet"
OTHERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "qwen2.5-vl-7b-32768-2x-h200": _MEDIA,
        "qwen2.5-vl-7b-32768-2x-h200-bf16-moments": _MEDIA,
        "qwen2.5-vl-7b-32768-2x-h200-offload": _MEDIA,
        "qwen3-0.6b-8192-1x-h200-recompute": _OLD,
        "qwen3-0.6b-8192-2x-h200-replicate": _OLD,
        "qwen3-0.6b-8192-2x-h200-shard": _OLD,
        "qwen3-0.6b-8192-2x-h200-text": "Liger's kernels, in steps that were as long as the host needed to launch them",
    }
)
"""Records of what the code does no more, and what it did."""
CUT: Final = MappingProxyType({"qwen3-30b-12": ("qwen3-30b-a3b", 12), "qwen3-8b-16": ("qwen3-8b", 16)})
"""Models that are a preset with fewer layers."""
_GONE: Final = (r" --copies\b", r" --profile-at \d+")


@dataclass(frozen=True, slots=True)
class Config:
    """What to do with the table."""

    write: bool = False
    """Put it into docs/plan.md."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A record and its prediction. Bytes in 10^9, seconds of a step."""

    name: str
    predicted_gb: float
    measured_gb: float
    predicted_s: float
    measured_s: float
    moment: str
    bound: str

    @property
    def memory_error(self) -> float:
        """Of the prediction, as a share of what was measured."""
        return self.predicted_gb / self.measured_gb - 1

    @property
    def time_error(self) -> float:
        """Likewise."""
        return self.predicted_s / self.measured_s - 1


def compare_records(folder: Path) -> list[Compared]:
    """Every record of `folder`, and what a plan says of it. Effect: reads files."""
    subjects: dict[str, Subject] = {}
    compared = []
    for name, record in sorted(read_records(folder).items()):
        outlook = predict(name, record, subjects)
        peak, pace = outlook.footprint.peak, outlook.pace
        numbers = (peak.total / 1e9, record["memory_gb"], pace.seconds, record["seconds"])
        compared.append(Compared(name, *numbers, re.sub(r" \d+$", "", peak.when), pace.bound))
    return compared


def predict(name: str, record: Mapping[str, Any], subjects: dict[str, Subject]) -> Outlook:
    """What a plan says of the run of a record, whose flags are those of its command. Donates `subjects`, by model."""
    command = record["command"]
    for gone in _GONE:
        command = re.sub(gone, "", command)
    run = parse(Measured, None, args=shlex.split(command)[3:]).run
    world = 2 if "-2x-" in name else 1
    with TemporaryDirectory() as folder:
        model = run.model
        if model in CUT:
            preset, layers = CUT[model]
            read_config(preset, num_hidden_layers=layers).save_pretrained(folder)
            model = folder
        asked = Planned(run=replace(run, model=model, linear="plain", virtual_shards=None), gpus=world)
        if run.model not in subjects:
            subjects[run.model] = read_subject(asked)
    subject = subjects[run.model]
    asked = replace(asked, run=run, reach=reach_of(subject.facts, record))
    subject = replace(subject, asked=asked, spec=resolve_mesh(run.mesh, world))
    return look_ahead(Theatre(subject), subject.spec, choice_asked(subject))


def reach_of(facts: ModelFacts, record: Mapping[str, Any]) -> float:
    """Tokens of the document that a token was in, on average, from the operations that were counted. Pure."""
    each = record["tflops_per_rank"] * 1e12 / record["tokens_per_second_per_rank"]
    return (each - 6 * facts.active_params) / (6 * facts.num_layers * facts.num_heads * facts.head_dim)


def make_table(compared: list[Compared]) -> str:
    """Two tables: of what the code does, and of what it does no more. Pure."""
    heads = ("record", "GB predicted", "measured", "", "s predicted", "measured", "", "fullest", "bound by")
    lines = [_row(heads), _row(["---"] * len(heads))]
    lines += [_row(_cells(one)) for one in compared if one.name not in OTHERS]
    heads = (*heads[:7], "why it is another")
    lines += ["\nOf code that is no more:\n", _row(heads), _row(["---"] * len(heads))]
    lines += [_row((*_cells(one)[:7], OTHERS[one.name])) for one in compared if one.name in OTHERS]
    return "\n".join(lines) + "\n"


def _cells(one: Compared) -> list[str]:
    return [
        one.name,
        *(f"{one.predicted_gb:.1f}", f"{one.measured_gb:.1f}", f"{one.memory_error:+.1%}"),
        *(f"{one.predicted_s:.3g}", f"{one.measured_s:.3g}", f"{one.time_error:+.1%}"),
        *(one.moment, one.bound),
    ]


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def main(config: Config) -> None:
    """Print the table, or write it. Effect: reads the records, writes docs/plan.md if asked to."""
    table = make_table(compare_records(HERE))
    if config.write:
        DOC.write_text(MARKED.sub(lambda marks: f"{marks[1]}{table}{marks[2]}", DOC.read_text()))
    else:
        print(table, end="")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
