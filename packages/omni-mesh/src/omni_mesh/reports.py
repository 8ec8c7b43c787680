"""What a rank that fails leaves for the one that started it, and what that one says of it.

Of many ranks that end, one was the cause: the reports are files whose names sort by time, so that the first is known.
"""

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Report(NamedTuple):
    """How a rank says that it failed: by a traceback ("failed:") or by a code ("exited with code 3")."""

    rank: int
    text: str
    is_final: bool = False
    """It would fail again if it were started again."""
    refusal: str | None = None
    """The words of the `ValueError` that it was: a mistake of whoever asked, and no failure."""


def tell_failure(rank: int, exitcode: int, ranks: int, reports: Sequence[Report]) -> tuple[str, int]:
    """What to say, and the code to exit with, when `rank` was the first seen to end with `exitcode`.

    `reports` are those of all ranks, in the order in which they failed. The first seen may be a victim: a rank that
    raises takes a while to leave, and takes others down. So the earliest report is told too. Pure.
    """
    lines = []
    if rank not in [report.rank for report in reports]:
        how = f"exited with code {exitcode}, and without a Python error: its output above is all there is"
        if exitcode < 0:
            how = f"was killed by {signal.Signals(-exitcode).name}"
        if exitcode == -signal.SIGKILL:
            how += ", most often because the machine ran out of memory"
        lines.append(f"Rank {rank} of {ranks} {how}.")
    if reports:
        lines.append(f"Rank {reports[0].rank} of {ranks} {reports[0].text}")
    return "\n".join(lines), exitcode if exitcode > 0 else 128 - exitcode


def find_refusal(rank: int, reports: Sequence[Report]) -> str | None:
    """What the rank that failed first refused; None if it did not refuse, or `rank`, the first seen, has no report.

    Who died without a word may have made others say anything. Pure.
    """
    return reports[0].refusal if rank in [report.rank for report in reports] else None


def write_report(folder: Path, report: Report) -> None:
    """Leave a report whose name sorts by time. It appears whole or not at all, as this rank may be ended any moment.

    Effect: writes to `folder`.
    """
    path = folder / f"{time.time_ns():020d}-{report.rank}"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(report))
    part.rename(path)


def read_reports(folder: Path) -> list[Report]:
    """The reports of the ranks that failed, earliest first. Effect: reads `folder`."""
    paths = sorted(path for path in folder.iterdir() if path.suffix != ".part")
    return [Report(*json.loads(path.read_text())) for path in paths]
