"""What docs/models.md says of each type of model is so: measured anew."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import transformers
from models import COLUMNS, DOCS, examine, examine_compiled, table, troubles
from ranks import Run
from tiny_types import KINDS

TOLD = DOCS.read_text().partition("<!-- table -->\n")[2].partition("\n<!-- /table -->")[0]
WHOLE = TOLD.splitlines()[0].partition(": ")[2].rstrip(".").split(", ")
"""Types of which all works, as the docs say."""
IS_THIS_VERSION = f"transformers {transformers.__version__}: " in TOLD
MEASURED: dict[str, dict[str, str]] = {}
COMPILED: dict[str, dict[str, str]] = {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_type_equals_plain_transformers_or_says_why_not(kind: str, run: Run, tmp_path: Path) -> None:
    cells = MEASURED[kind] = run(examine, 2, kind, tmp_path)[0]
    check(kind, cells, told_of(kind, *(name for name in ("pack", *COLUMNS) if name != "compile")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_type_compiled_equals_plain_transformers_or_says_why_not(kind: str, run: Run) -> None:
    cells = COMPILED[kind] = run(examine_compiled, 1, kind)[0]
    assert cells or kind not in WHOLE, "what works is compiled here"
    check(kind, cells, told_of(kind, "compile"))


def test_types_of_which_all_works_are_those_of_which_nothing_else_is_told() -> None:
    assert len(WHOLE) >= 120
    if IS_THIS_VERSION:
        assert {kind for kind in KINDS if not told_of(kind, "pack", *COLUMNS)} == set(WHOLE)


def test_the_docs_hold_what_was_measured() -> None:
    if not MEASURED.keys() == COMPILED.keys() == {*KINDS}:
        pytest.skip("not every type was measured in this run")
    if IS_THIS_VERSION:
        assert table({kind: MEASURED[kind] | COMPILED[kind] for kind in KINDS}) == TOLD


def check(kind: str, cells: Mapping[str, str], told: Mapping[str, str]) -> None:
    """No number is wrong, and what does not work is what the docs tell."""
    assert not any("is off by" in why or "come back" in why for why in cells.values()), cells
    if IS_THIS_VERSION:
        assert troubles(cells) == told, kind


def told_of(kind: str, *columns: str) -> dict[str, str]:
    """Why these columns of a type do not work, as the docs say."""
    rows = [line.strip("| ").split(" | ", maxsplit=2) for line in TOLD.splitlines() if line.startswith("| ")]
    told = {name: why for row, names, why in rows if row == kind for name in names.split(", ")}
    return {name: why for name, why in told.items() if name in columns}
