"""On a disk and in storage that is none: whoever is killed, and whenever, the newest that counts is whole."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from omni_ckpt.faults import Point

BEFORE = ("staged", "begun", "writing", "written", "indexed")
"""In storage, and on a disk `sealed`, too: there a name makes a checkpoint, and not its manifest."""
KILLED, RAISED = -signal.SIGKILL, 3


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).parent / "storage_main.py"
    subprocess.run([sys.executable, script, str(folder)], check=True, timeout=300)
    return json.loads((folder / "killed.json").read_text())


@pytest.mark.parametrize("where", ["in storage", "on a disk"])
@pytest.mark.parametrize("way", ["save", "begin"])
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("point", get_args(Point))
def test_a_rank_that_is_killed_leaves_the_old_checkpoint_before_the_manifest_and_the_new_one_after(
    point, victim, way, where, killed
):
    found = killed[f"{way} {point} {victim} {where}"]
    before = (*BEFORE, "sealed") if where == "on a disk" else BEFORE
    # Of a rank whose shard is written nothing more is needed.
    new = point not in before or (victim == 1 and point in ("indexed", "sealed"))
    assert found["ends"] == ([KILLED, RAISED] if victim == 0 else [RAISED, KILLED])
    assert (found["newest"], found["equal"]) == (2 if new else 1, True)
    # The first rank that goes on may delete the old one before it hears of the other.
    assert found["steps"] in ([[1, 2], [2]] if new else [[1]])
    assert not any(found["wrong"])


@pytest.mark.parametrize("act", ["save", "prune", "aside"])
def test_killed_at_any_request_what_counts_is_whole(act, killed):
    cases = {name: found for name, found in killed.items() if name.startswith(f"{act} at ")}
    assert len(cases) > 10
    for name, found in cases.items():
        assert found["equal"], name
        if act == "aside":
            assert found["newest"] == 1, name
            assert found["steps"] in ([1, 2], [1]), name
            # Damaged as it was, and nothing is missing, under each name under which it counts.
            for problems in (*found["wrong"][1:], *found["aside"]):
                assert [problem.partition(".distcp ")[2] for problem in problems] == [
                    "holds other bytes than were written"
                ]
        else:
            assert not any(found["wrong"]), name
            assert found["steps"] in ({"save": [[1], [1, 2]], "prune": [[1, 2], [2]]}[act]), name
    last = cases[f"{act} at {len(cases) - 1}"]
    assert last["steps"] == {"save": [1, 2], "prune": [2], "aside": [1]}[act], "of the one that was not killed"


@pytest.mark.parametrize("act", ["save", "prune"])
def test_what_was_killed_at_any_request_is_cleaned_up_by_the_next_save_and_prune(act, killed):
    cases = {name: found for name, found in killed.items() if name.startswith(f"after {act} at ")}
    assert len(cases) > 10
    for name, found in cases.items():
        assert (found["steps"], found["left"], found["equal"]) == ([3], ["step-00000003"], True), name
