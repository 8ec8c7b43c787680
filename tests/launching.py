"""The launchers of `clusters/`, with settings as a user would edit them."""

import re
from collections.abc import Mapping
from pathlib import Path

from starting import ROOT

CLUSTERS = ROOT / "clusters"
BELOW = "# Nothing below needs an edit.\n"


def edited(name: str, folder: Path, settings: Mapping[str, str]) -> Path:
    """A copy in `folder` of the script `name`, with other settings: words of bash by name."""
    top, below = (CLUSTERS / name).read_text().split(BELOW)
    for setting, value in settings.items():
        top, count = re.subn(rf"^{setting}=.*$", f"{setting}={value}", top, flags=re.MULTILINE)
        assert count == 1, f"{name} has {count} settings {setting}"
    script = folder / name
    script.write_text(top + BELOW + below)
    return script
