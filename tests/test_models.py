"""What docs/models.md says of each type of model is so: measured anew."""

from pathlib import Path

import pytest
import transformers
from models import DOCS, KINDS, examine, is_whole, table
from ranks import Run

TOLD = DOCS.read_text().partition("<!-- table -->\n")[2].partition("\n<!-- /table -->")[0]
WHOLE = TOLD.splitlines()[0].partition(": ")[2].rstrip(".").split(", ")
"""Types of which all works, as the docs say."""
IS_THIS_VERSION = f"transformers {transformers.__version__}: " in TOLD
MEASURED: dict[str, dict[str, str]] = {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_type_equals_plain_transformers_or_says_why_not(kind: str, run: Run, tmp_path: Path) -> None:
    cells = MEASURED[kind] = run(examine, 2, kind, tmp_path)[0]
    assert not any("is off by" in why or "come back" in why for why in cells.values()), cells
    if IS_THIS_VERSION:
        assert is_whole(cells) == (kind in WHOLE), cells


def test_the_docs_hold_what_was_measured() -> None:
    if len(MEASURED) < len(KINDS):
        pytest.skip("not every type was measured in this run")
    assert sum(map(is_whole, MEASURED.values())) >= 60
    if IS_THIS_VERSION:
        assert table(MEASURED) == TOLD
