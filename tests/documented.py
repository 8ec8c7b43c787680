"""Rows of a run, whose names docs/watching.md has to list."""

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs" / "watching.md"


def documented_names() -> list[str]:
    """Patterns of the names in the first column of the table."""
    table = DOCS.read_text().split("## Names")[1].split("**MFU**")[0]
    firsts = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    return [re.escape(name).replace("NAME", ".+") for name in re.findall(r"`([^`]+)`", firsts)]


def read_documented(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    names = documented_names()
    unknown = {name for row in rows for name in row if not any(re.fullmatch(known, name) for known in names)}
    assert not unknown, f"docs/watching.md does not list {unknown}"
    return rows
