"""Runs on several hosts, by the launchers of `clusters/`: cut off in the midst, they end as one that was not."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hosts import two_hosts, why_not
from launching import edited
from starting import ROOT, alone, numbers, rows_of

STEPS = 60
RUN = " ".join(
    [
        *("(apps/pretrain.py", "--steps", str(STEPS), "--seq-len", "64", "--batch", "12", "--shard", "2"),
        *("--virtual-shards", "12", "--save-every", "4", "--save-in-background", "False", "--timeout-s", "8)"),
    ]
)
HERE = {"REPO": str(ROOT), "RUN": RUN, "RESTARTS": "3"}
BOUND_S = 180
SRUN = """#!/usr/bin/env bash
# As srun starts two tasks of two hosts, and ends: with the highest code of any task.
while [[ $1 == --* ]]; do shift; done
for rank in 0 1; do
    SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_PROCID=$rank SLURM_LOCALID=0 "$@" &
    ranks[rank]=$!
done
echo "${ranks[@]}" > "$FOLDER/ranks"
highest=0
for rank in "${ranks[@]}"; do
    code=0
    wait "$rank" || code=$?
    ((code > highest)) && highest=$code
done
exit "$highest"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$FOLDER/asked"
case $1-$2 in
    show-hostnames) printf 'localhost\\nhost1\\n' ;;
    show-job) echo "   JobState=RUNNING Reason=None" ;;
esac
"""
SCANCEL = """#!/usr/bin/env bash
echo "scancel $@" >> "$FOLDER/asked"
kill -TERM $(cat "$FOLDER/ranks")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A program like python, of which each start is a fork of one that has imported everything."""
    folder = tmp_path_factory.mktemp("warm")
    code, socket = ROOT / "tests" / "warm_python.py", folder / "socket"
    server = subprocess.Popen(
        [sys.executable, code, socket], stdout=subprocess.PIPE, text=True, env=alone() | {"OMP_NUM_THREADS": "1"}
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "warm\n"
        program = folder / "python"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {code} {socket} "$@"\n')
        program.chmod(0o755)
        yield program
    finally:
        server.kill()
        server.communicate()


def wait_until(is_so: Callable[[], bool], *, bound_s: float = BOUND_S) -> None:
    until = time.monotonic() + bound_s
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.1)


def steps_of(out: Path) -> int:
    """So many steps a run has told."""
    return len(rows_of(out)) if (out / "metrics.jsonl").exists() else 0


@dataclass
class BySlurm:
    """What came of both starts of a job."""

    codes: list[int] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """Of the programs of Slurm, in order."""
    rows: list[dict[str, float]] = field(default_factory=list)


@pytest.fixture(scope="module")
def by_slurm(python: Path, tmp_path_factory: pytest.TempPathFactory) -> BySlurm:
    """A run of Slurm's script whose time runs out in the midst, and which is then put into the queue again."""
    folder = tmp_path_factory.mktemp("slurm")
    for name, code in {"srun": SRUN, "scontrol": SCONTROL, "scancel": SCANCEL}.items():
        (folder / name).write_text(code)
        (folder / name).chmod(0o755)
    script = edited("slurm.sh", folder, {**HERE, "PYTHON": str(python), "OUT": str(folder / "run")})
    env = alone() | {"PATH": f"{folder}:{os.environ['PATH']}", "FOLDER": str(folder), "SLURM_JOB_ID": "7"}
    env |= {"SLURM_JOB_NODELIST": "host[0-1]", "SLURM_CPUS_PER_TASK": "1"}
    ran = BySlurm()
    for _ in range(2):
        job = subprocess.Popen(["bash", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        try:
            if not ran.codes:
                wait_until(lambda job=job: steps_of(folder / "run") >= 2 or job.poll() is not None)
                job.send_signal(signal.SIGUSR1)
            ran.told.append(job.communicate(timeout=BOUND_S)[0])
        finally:
            job.kill()
        ran.codes.append(job.returncode)
    ran.asked, ran.rows = (folder / "asked").read_text().splitlines(), rows_of(folder / "run")
    return ran


def test_a_job_whose_time_runs_out_saves_leaves_and_is_put_into_the_queue_again(by_slurm: BySlurm) -> None:
    assert by_slurm.codes == [85, 0], by_slurm.told
    hosts = "show hostnames host[0-1]"
    assert by_slurm.asked == [hosts, "scancel --signal=TERM 7", "show job 7", "requeue 7", hosts]
    assert "continues" in by_slurm.told[1]
    assert [row["step"] for row in by_slurm.rows] == list(range(1, STEPS + 1))


@pytest.mark.skipif(bool(reason := why_not()), reason=f"two hosts cannot be made: {reason}")
def test_a_host_that_is_cut_off_is_told_by_both_and_the_run_that_goes_on_is_the_unbroken_one(
    python: Path, by_slurm: BySlurm, tmp_path: Path
) -> None:
    out, logs, started = tmp_path / "run", [tmp_path / "log-a", tmp_path / "log-b"], []

    def have_ended() -> bool:
        return all(process.poll() is not None for process in started)

    try:
        with two_hosts() as hosts:
            settings = {"OUT": str(out), "PYTHON": str(python), "RANKS": "1", "HEAD": f"{hosts[0].address}:29500"}
            script = edited("torchrun.sh", tmp_path, {**HERE, **settings, "PAUSE_S": "2", "PATIENCE_S": "6"})
            env = alone() | {"GLOO_SOCKET_IFNAME": "link0", "PYTHON_EXEC": str(python), "OMP_NUM_THREADS": "1"}
            for host, log in zip(hosts, logs, strict=True):
                with log.open("w") as file:
                    command = host.inside("bash", str(script))
                    started.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env))
            wait_until(lambda: steps_of(out) >= 6 or have_ended())
            hosts[1].run("ip link set link0 down")
            assert 6 <= steps_of(out) < STEPS, "in the midst"
            wait_until(lambda: all("To blame" in log.read_text() for log in logs) or have_ended())
            hosts[1].run("ip link set link0 up")
            wait_until(have_ended)
    finally:
        for process in started:
            process.wait(10)
    told = [log.read_text() for log in logs]
    assert [process.returncode for process in started] == [0, 0], told
    assert numbers(rows_of(out)) == numbers(by_slurm.rows)
    blamed = [
        re.findall(r"To blame: rank (\d) of 2, which does not answer: it is stopped, dead or cut off", text)
        for text in told
    ]
    standing = [re.findall(r"^Rank (\d) stands here:$", text, re.MULTILINE) for text in told]
    assert sorted(blamed) == [["0"], ["1"]] and standing == blamed[::-1], told
    assert not [host for host in hosts if Path(f"/proc/{host.pid}").exists()], "nothing is left"
