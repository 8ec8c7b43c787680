"""The table of speeds in the README, from the records of this folder.

uv run benchmarks/table.py            print it
uv run benchmarks/table.py --write    put it between the marks in README.md
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
MARKED = re.compile(r"(<!-- benchmarks -->\n).*?(<!-- /benchmarks -->)", re.DOTALL)
HEAD = ("run", "GPU", "tokens/s/GPU", "TFLOP/s/GPU", "of matmul peak", "peak GB", "command after `uv run`")


@dataclass(frozen=True, slots=True)
class Config:
    """What to do with the table."""

    write: bool = False
    """Put it into README.md."""


def make_table(records: dict[str, dict[str, Any]]) -> str:
    """A row a record, in order of name; a column that no record has is left out. Pure."""
    rows = [
        (
            name,
            record["gpu"].removeprefix("NVIDIA "),
            f"{record['tokens_per_second_per_rank']:,.0f}",
            f"{record['tflops_per_rank']:.0f}",
            f"{record['share_of_matmul_peak']:.0%}" if "share_of_matmul_peak" in record else "",
            f"{record['memory_gb']:.1f}",
            f"`{record['command'].removeprefix('uv run ')}`",
        )
        for name, record in sorted(records.items())
    ]
    columns = [(head, "---", *cells) for head, *cells in zip(HEAD, *rows, strict=True) if any(cells)]
    return "".join(f"| {' | '.join(row)} |\n" for row in zip(*columns, strict=True))


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of `folder`, by name. Effect: reads files."""
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def main(config: Config) -> None:
    """Print the table, or write it. Effect: reads the records, writes README.md if asked to."""
    table = make_table(read_records(HERE))
    if config.write:
        README.write_text(MARKED.sub(lambda marks: f"{marks[1]}{table}{marks[2]}", README.read_text()))
    else:
        print(table, end="")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
