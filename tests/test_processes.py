"""Processes end as they should: told to leave they save and leave well, and what they refuse is told in words."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from shutil import disk_usage
from typing import NoReturn

import pytest
import torch
from preflight import start
from request import Config
from room import check_room, free_memory, group_memory, will_go
from starting import ROOT, alone, rows_of, torchrun
from watch import what_interrupt_left

from omni_ckpt import Retention, latest, save_dcp, step_dir, step_of

PRETRAIN = str(ROOT / "apps" / "pretrain.py")


@pytest.mark.parametrize(("ranks", "by"), [(2, ()), (1, torchrun(1))], ids=["launch", "torchrun"])
def test_what_ranks_refuse_is_told_in_words_with_code_2_and_its_traceback_is_kept(
    ranks: int, by: tuple[str, ...], tmp_path: Path
) -> None:
    # Of more than 1,000 documents only some are looked at before anything starts.
    last = [999 if line == 2 else 3 for line in range(1, 1101)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": [1, 2, token]}) + "\n" for token in last))
    asked = ["--shard", str(ranks), "--seq-len", "64", "--data", str(tmp_path / "d.jsonl")]
    asked += ["--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, *by, PRETRAIN, *asked], check=False, capture_output=True, text=True, env=alone(), timeout=240
    )
    words = f"error: {tmp_path / 'd.jsonl'}:2: token id 999 is beyond the vocabulary of 272 tokens.\n"
    words += "--max-bad N leaves out up to N documents that cannot be used."
    log = tmp_path / "run" / "errors.log"
    words += "\nNo checkpoint was complete yet: the next run starts anew. --save-every, now 100, saves more often."
    assert f"{words}\nThe traceback is in {log}.\n" in done.stderr
    assert "ValueError" not in done.stderr
    assert ", in _check_bad\n" in log.read_text()
    assert "--max-bad N leaves out up to" in log.read_text(), "it is spelled as it is typed, there too"
    assert "\nmax_bad" not in log.read_text()
    if by:
        assert "exitcode  : 2 " in done.stderr
    else:
        assert done.returncode == 2
        assert done.stderr.count("\n") == 4, "told once, and nothing else"


def test_a_run_of_which_every_process_is_told_to_leave_saves_and_leaves_with_0(tmp_path: Path) -> None:
    """As a scheduler tells. That the launcher hands on what it alone is told is its own law."""
    out = tmp_path / "run"
    asked = ["--shard", "2", "--steps", "100000", "--seq-len", "64", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, PRETRAIN, *asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=alone(),
        start_new_session=True,
    )
    read_until(process, " 3/100000")
    os.killpg(process.pid, signal.SIGTERM)
    told, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    found = latest(out)
    assert found is not None
    assert step_of(found) == rows_of(out)[-1]["step"] < 1000
    assert f"stands at step {step_of(found)}" in told


def interrupted(config: Config) -> NoReturn:
    raise KeyboardInterrupt


def cannot_look(config: Config) -> str:
    raise PermissionError("s3://me:word@bucket is shut")


def test_after_ctrl_c_it_is_told_what_there_is_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain.py", "--out", str(tmp_path), "--save-every", "7", "--shard", "1"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def interrupt(left: Callable[[Config], str]) -> str:
        with pytest.raises(SystemExit) as leaving:
            start(interrupted, lambda config: None, Config, None, left=left)
        assert leaving.value.code == 130
        return capsys.readouterr().err.removeprefix("Interrupted: every rank has ended.\n")

    tail = "kill -TERM saves before it leaves"
    assert interrupt(what_interrupt_left) == (
        "No checkpoint was complete yet: the same command starts anew. "
        f"{tail}, and --save-every, now 7, saves more often.\n"
    )
    newest = save_dcp({"w": torch.ones(1)}, step_dir(tmp_path, 7))
    assert interrupt(what_interrupt_left) == f"{newest} stands: the same command goes on from it. {tail}.\n"
    assert interrupt(cannot_look) == "What is left of it cannot be looked for: s3://***@bucket is shut\n"
    assert interrupt(lambda config: "") == ""


@pytest.mark.parametrize("app", ["pretrain", "plan", "report", "merge"])
def test_ctrl_c_before_an_app_has_begun_is_told_in_a_word(app: str) -> None:
    # Tyro is imported by all of them, and before it nothing that takes long.
    code = "import os, signal, sys; from importlib.abc import MetaPathFinder\n"
    code += "class Slow(MetaPathFinder):\n    def find_spec(self, name, path, target=None):\n"
    code += "        if name == 'tyro': os.kill(os.getpid(), signal.SIGINT)\n"
    code += f"sys.meta_path.insert(0, Slow()); sys.argv = [{app!r}]; sys.path.insert(0, {str(ROOT / 'apps')!r})\n"
    code += f"import runpy; runpy.run_path({str(ROOT / 'apps' / app)!r} + '.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "\ninterrupted\n")


def test_more_than_one_ctrl_c_ends_a_run_as_one_does(tmp_path: Path) -> None:
    command = [sys.executable, str(PRETRAIN), "--steps", "100000", "--seq-len", "64", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    read_until(process, " 3/100000")
    until = time.monotonic() + 1.5
    while process.poll() is None and time.monotonic() < until:
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, told = process.communicate(timeout=60)
    assert "Traceback" not in told
    assert told.startswith("Interrupted: every rank has ended.\nNo checkpoint was complete yet")


def children_of(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def start_under_torchrun(*main: str) -> subprocess.Popen[str]:
    """Two ranks of a script."""
    return subprocess.Popen(
        [sys.executable, *torchrun(2), *main],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=alone() | {"OMP_NUM_THREADS": "1"},
    )


def read_until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    while words not in (line := process.stdout.readline()):
        assert line or process.poll() is None


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks Linux for the ranks of torchrun")
def test_ranks_of_torchrun_save_and_go_on_or_leave_with_0_if_one_is_told(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_under_torchrun(PRETRAIN, "--shard", "2", "--steps", "100000", "--seq-len", "64", "--out", str(out))
    read_until(process, " 3/100000")
    ranks = children_of(process)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGUSR1)
    until = time.monotonic() + 60
    while latest(out) is None:
        assert time.monotonic() < until
        read_until(process, "step")
    first = latest(out)
    assert first is not None
    for _ in range(2):
        read_until(process, "/100000")
    os.kill(ranks[1], signal.SIGTERM)
    told, _ = process.communicate(timeout=60)
    last = latest(out)
    assert last is not None
    assert process.returncode == 0
    assert step_of(first) < step_of(last) == rows_of(out)[-1]["step"]
    assert f"stands at step {step_of(last)}" in told


HEEDS = """
import os, time
from omni_mesh import heed_signals
with heed_signals() as requests:
    os.write(1, b"heeds\\n")
    while not requests.take()[0]:
        time.sleep(0.01)
    os.write(1, b"left\\n")
"""
"""In one piece each: what a rank prints may have another's words in it before its line ends."""


def test_torchrun_that_is_told_to_leave_fails_though_its_ranks_have_left_well(tmp_path: Path) -> None:
    """As docs/reliability.md says: torch's own launcher has its own code for this."""
    (tmp_path / "heeds.py").write_text(HEEDS)
    process = start_under_torchrun(str(tmp_path / "heeds.py"))
    for _ in range(2):
        read_until(process, "heeds")
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=60)
    assert (process.returncode, told) == (1, "left\nleft\n")


def test_a_disk_without_room_is_told_before_the_first_step(tmp_path: Path) -> None:
    huge = {"w": torch.empty(10**15, device="meta")}
    with pytest.raises(
        ValueError, match=r"has [\d,.]+ [GT]B free, and checkpoints will take 36,000\.0 TB: 12,000\.0 TB each"
    ):
        check_room(tmp_path, huge, Retention(2), "--out")
    with pytest.raises(ValueError, match=r"will take 24,000\.0 TB: 8,000\.0 TB each"):
        check_room(tmp_path, huge, Retention(2), "--out", moments=torch.bfloat16)
    check_room(tmp_path, {"w": torch.empty(10)}, Retention(2), "--out")


def test_what_a_killed_save_left_does_not_take_the_room_of_the_next(tmp_path: Path) -> None:
    half = tmp_path / "step-00000002.tmp"
    half.mkdir()
    with (half / "__0_0.distcp").open("wb") as file:
        file.truncate(10**13)  # Without taking them: a file with a hole.
    check_room(tmp_path, {"w": torch.empty(10**11, device="meta")}, Retention(2), "--out")


def test_only_what_will_be_deleted_makes_room(tmp_path: Path) -> None:
    def leaving(**keep: int) -> list[int]:
        return [step_of(path) for path in will_go(tmp_path, Retention(**keep))]

    assert leaving() == []
    for step in (4, 8, 12):
        save_dcp({"w": torch.ones(1), "metrics": {"loss": float(step)}}, step_dir(tmp_path, step))
    assert leaving(newest=2) == [4, 8, 12], "also the newest, once there are newer ones"
    assert leaving(newest=2, every=8) == [4, 12]
    assert leaving(newest=2, every=12) == [4, 8]
    assert leaving(newest=2, best=1) == [8], "the newest may be one of the best"
    (step_dir(tmp_path, 12) / "PINNED").touch()
    assert leaving(newest=2) == [4, 8]
    (step_dir(tmp_path, 4) / "PINNED").touch()
    (step_dir(tmp_path, 8) / "MANIFEST.json").unlink()
    assert leaving(newest=2) == [], "what is damaged is never deleted"
    # A tensor of a third of the free disk: two more do not fit, and one would, if one that is there were deleted.
    third = {"w": torch.empty(disk_usage(tmp_path).free * 2 // 3 // 12, device="meta")}
    check_room(tmp_path, {}, Retention(1), "--save-to")
    with pytest.raises(ValueError, match=r"--save-to .* [GT]B free.*choose another --save-to"):
        check_room(tmp_path, third, Retention(1), "--save-to")
    (step_dir(tmp_path, 12) / "PINNED").unlink()
    check_room(tmp_path, third, Retention(1), "--save-to")


def test_memory_of_a_container_is_what_it_may_still_take(tmp_path: Path) -> None:
    assert free_memory() > 0
    assert group_memory(tmp_path) is None
    for name, content in (("max", "1000\n"), ("current", "700\n"), ("stat", "anon 500\ninactive_file 150\n")):
        (tmp_path / f"memory.{name}").write_text(content)
    assert group_memory(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert group_memory(tmp_path) is None
