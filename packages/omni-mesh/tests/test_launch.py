"""Laws of starting ranks: the sum is right, an error is told once, and nothing is left running.

A rank takes seconds to import torch, so few tests start any, and the wording is tested without processes.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

from omni_mesh import MeshConfig, launch, planned_ranks
from omni_mesh.reports import Report, find_refusal, tell_failure

PREAMBLE = """
import os, signal, sys, time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from omni_mesh import MeshConfig, join_world, launch, planned_ranks

# A test runner in the background of a shell ignores Ctrl-C, and so would what it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

def deaf():
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())

DEAF_WHILE_IMPORTING = deaf()

@dataclass(frozen=True)
class Config:
    value: float

def say(*words):
    print(" ".join(str(word) for word in words) + "\\n", end="", flush=True)
"""
CALL = """
if __name__ == "__main__":
    launch(main, Config(10.0), ranks=2)
    say("parent done")
"""


def start(folder, main, call=CALL):
    """A script that launches `main` on two ranks, running at the head of its own process group."""
    script = folder / "script.py"
    script.write_text(PREAMBLE + dedent(main) + call)
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS")}
    pipe = subprocess.PIPE
    command = [sys.executable, script]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env, start_new_session=True)


def lines_of(out, word):
    """The words after `word` in each line of `out` that begins with it, in the order of ranks."""
    return sorted(line.split()[1:] for line in out.splitlines() if line.startswith(word))


def gone(pid):
    """Whether a process has ended, though the one that adopted it may not have noticed yet."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        os.kill(int(pid), 0)
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def test_two_ranks_of_a_script_sum_what_they_hold(tmp_path):
    process = start(
        tmp_path,
        """
        if __name__ == "__mp_main__":
            os.kill(os.getpid(), signal.SIGUSR1)  # To a rank that is still importing, and has nothing to save.

        def main(config):
            with join_world(device="cpu") as world:
                x = torch.tensor(config.value + world.rank)
                dist.all_reduce(x)
                say("rank", world.rank, world.local_rank, world.size, x.item(), planned_ranks(MeshConfig()))
                say("threads", torch.get_num_threads())
                say("deaf", DEAF_WHILE_IMPORTING, deaf())
            sys.exit()  # A clean way to leave, also for a rank.
        """,
    )
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, "")
    assert lines_of(out, "rank") == [["0", "0", "2", "21.0", "2"], ["1", "1", "2", "21.0", "2"]]
    assert all(int(threads) <= max(1, len(os.sched_getaffinity(0)) // 2) for [threads] in lines_of(out, "threads"))
    assert lines_of(out, "deaf") == [["True", "False"]] * 2, "Ctrl-C while importing would print a traceback per rank"
    assert out.endswith("parent done\n")


def test_what_ends_after_a_rank_was_done_does_not_undo_it(tmp_path):
    process = start(
        tmp_path,
        """
        class Late:
            def __del__(self):
                os.abort()  # As a thread of a process group may, when Python takes itself apart.

        def main(config):
            import atexit, builtins, tempfile
            atexit.register(say, "at exit")
            builtins.kept = Late(), tempfile.TemporaryDirectory()
            say("folder", builtins.kept[1].name)
        """,
    )
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, "")
    assert len(lines_of(out, "at exit")) == 2
    assert not [folder for [folder] in lines_of(out, "folder") if Path(folder).exists()]
    assert out.endswith("parent done\n")


def test_a_failing_rank_is_named_and_told_once_and_ends_the_others(tmp_path):
    process = start(
        tmp_path,
        """
        def main(config):
            try:
                with join_world(device="cpu") as world:
                    say("pid", os.getpid())
                    dist.barrier()
                    if world.rank == 1:
                        raise RuntimeError("the mesh " + "is torn by hunter" + "2")
                    dist.barrier()  # Fails for want of the other: a consequence, not to be told.
            finally:
                say("connected", world.rank, dist.is_initialized())
        """,
        call=CALL.replace("ranks=2", "ranks=2, censor=lambda text: text.replace('hunter2', '***')"),
    )
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1
    assert err.startswith("Rank 1 of 2 failed:\nTraceback (most recent call last):\n")
    assert err.endswith("\nRuntimeError: the mesh is torn by ***\n")
    assert err.count("is torn by ***") == err.count("Traceback") == 1
    assert len(err.splitlines()) <= 6, "the frames of main, and no others"
    assert ["1", "True"] in lines_of(out, "connected"), "the others fail only once the cause was told"
    assert all(gone(pid) for [pid] in lines_of(out, "pid"))
    assert "parent done" not in out


def again_and_again(group, number):
    for _ in range(20):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            return
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("end", "by", "code", "words"),
    [
        (os.killpg, signal.SIGINT, 130, "Interrupted: every rank has ended.\n"),
        (again_and_again, signal.SIGINT, (130, -signal.SIGINT), "Interrupted: every rank has ended.\n"),
        (os.kill, signal.SIGTERM, 143, "Stopped by SIGTERM: every rank has ended.\n"),
        (os.kill, signal.SIGKILL, -9, None),
    ],
    ids=["ctrl-c", "ctrl-c again and again", "sigterm", "sigkill"],
)
def test_however_the_launcher_ends_no_rank_is_left(tmp_path, end, by, code, words):
    process = start(
        tmp_path,
        """
        def main(config):
            say("pid", os.getpid())
            with join_world(device="cpu") as world:
                if world.rank == 0:
                    dist.barrier()  # Waits in C++, where Python's own handler of Ctrl-C is never called.
                time.sleep(600)
        """,
    )
    assert process.stdout
    pids = [process.stdout.readline().split()[1] for _ in range(2)]
    end(process.pid, by)
    _, err = process.communicate(timeout=20)  # The ranks hold this pipe too, so it also waits for them.
    # While Python takes itself apart, at the very end, Ctrl-C has its meaning again.
    assert process.returncode in (code if isinstance(code, tuple) else (code,))
    assert words is None or err == words
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize(
    ("number", "begun", "code", "words"),
    [("SIGTERM", 0, 143, "Stopped by SIGTERM"), ("SIGINT", 1, 130, "Interrupted")],
    ids=["told to leave before there are ranks", "interrupted between two ranks"],
)
def test_whoever_ends_a_launcher_that_is_starting_ranks_ends_those_that_come(tmp_path, number, begun, code, words):
    process = start(
        tmp_path,
        f"""
        from pathlib import Path

        BEGUN = Path({str(tmp_path / "begun")!r})

        class Telling:
            sent = 0

            def __reduce__(self):
                # The launcher looks whether this can be sent, and then sends it to each rank that it is about to start.
                Telling.sent += 1
                if Telling.sent == 2 + {begun}:
                    while {begun} and not BEGUN.exists():
                        time.sleep(0.05)
                    os.kill(os.getpid(), signal.{number})
                    time.sleep(0.1)  # Until it is heard.
                return (Telling, ())

        def main(config):
            BEGUN.touch()
            say("pid", os.getpid())
            time.sleep(600)
        """,
        call=CALL.replace("Config(10.0)", "Telling()"),
    )
    try:
        out, err = process.communicate(timeout=60)  # As long as there is a rank: it holds the pipe.
    finally:
        again_and_again(process.pid, signal.SIGKILL)
    assert (process.returncode, err) == (code, f"{words}: every rank has ended.\n")
    assert len(lines_of(out, "pid")) == begun
    assert all(gone(pid) for [pid] in lines_of(out, "pid"))


def test_ranks_that_heed_a_signal_save_their_work_and_the_launcher_ends_well(tmp_path):
    process = start(
        tmp_path,
        """
        from omni_mesh import heed_signals

        def main(config):
            with heed_signals() as requests:
                say("pid", os.getpid())
                for _ in range(6000):
                    leave, save = requests.take()
                    if save:
                        say("saved", os.environ["RANK"])
                    if leave:
                        say("left", os.environ["RANK"])
                        return
                    time.sleep(0.01)
        """,
    )
    assert process.stdout
    pids = [process.stdout.readline().split()[1] for _ in range(2)]
    process.send_signal(signal.SIGUSR1)
    saved = sorted(process.stdout.readline().split() for _ in range(2))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert saved == [["saved", "0"], ["saved", "1"]]
    assert lines_of(out, "left") == [["0"], ["1"]]
    assert (process.returncode, err) == (0, "")
    assert "parent done" in out
    assert all(gone(pid) for pid in pids)


def test_ranks_are_started_again_as_often_as_asked(tmp_path):
    process = start(
        tmp_path,
        f"""
        from pathlib import Path

        def main(config):
            times = Path({str(tmp_path)!r}) / ("times" + os.environ["RANK"])
            times.write_text(str(int(times.read_text() if times.exists() else 0) + 1))
            with join_world(device="cpu") as world:
                if times.read_text() < "3" and world.rank == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                dist.barrier()
                say("done", world.rank, times.read_text())
        """,
        call=CALL.replace("ranks=2", "ranks=2, max_restarts=2"),
    )
    out, err = process.communicate(timeout=120)
    assert lines_of(out, "done") == [["0", "3"], ["1", "3"]]
    assert process.returncode == 0
    killed = "Rank 1 of 2 was killed by SIGKILL, most often because the machine ran out of memory."
    told = [line for line in err.splitlines() if line.startswith(("All ranks", "Rank 1"))]
    again = "All ranks are started again, {} of 2 times."
    assert told == [killed, again.format(1), killed, again.format(2)]


def test_a_single_rank_runs_in_this_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    seen = []
    launch(lambda config: seen.append((config, os.getpid())), "config", ranks=1)
    assert seen == [("config", os.getpid())]


def test_a_rank_launches_nothing(monkeypatch):
    place = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    seen = []
    launch(lambda config: seen.append((config, signal.getsignal(signal.SIGUSR1))), "config", ranks=2)
    assert seen == [("config", signal.SIG_IGN)], "SIGUSR1 would end a rank that does not heed it yet"
    assert planned_ranks(MeshConfig(shard=2)) == 4, "the world that is, not the one that was asked for"


def test_what_cannot_be_sent_to_another_process_is_refused(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="a function at the top of a module, not a lambda"):
        launch(lambda config: None, None, ranks=2)
    with pytest.raises(ValueError, match=r"which failed: cannot pickle .* and `config` plain data"):
        launch(print, sys.stdout, ranks=2)
    with pytest.raises(ValueError, match="ranks=0: at least one process does the work"):
        launch(print, None, ranks=0)


def test_a_script_that_was_piped_in_is_refused():
    code = "from omni_mesh import launch\ndef main(config): pass\nlaunch(main, None, ranks=2)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ValueError: The ranks import `main` from its file, but it was typed in or piped." in done.stderr


RAISED = Report(1, "failed:\nTraceback ...\nRuntimeError: torn")


def test_the_rank_that_failed_first_is_told_even_when_another_was_seen_first():
    assert tell_failure(1, 1, 2, [RAISED]) == ("Rank 1 of 2 failed:\nTraceback ...\nRuntimeError: torn", 1)
    assert tell_failure(0, 1, 2, [RAISED, Report(0, "failed:\npeer closed")]) == tell_failure(1, 1, 2, [RAISED])


def test_a_rank_that_could_not_report_is_told_by_how_it_ended():
    killed, code = tell_failure(0, -9, 2, [])
    assert (killed, code) == (
        "Rank 0 of 2 was killed by SIGKILL, most often because the machine ran out of memory.",
        137,
    )
    assert tell_failure(0, -9, 2, [RAISED])[0] == f"{killed}\nRank 1 of 2 {RAISED.text}", "and nothing is hidden"
    assert tell_failure(0, -11, 2, []) == ("Rank 0 of 2 was killed by SIGSEGV.", 139)
    assert tell_failure(1, 7, 2, [])[0].startswith("Rank 1 of 2 exited with code 7, and without a Python error")
    assert tell_failure(1, 3, 2, [Report(1, "exited with code 3.")]) == ("Rank 1 of 2 exited with code 3.", 3)


def test_ctrl_c_of_a_single_rank_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(config: None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        launch(interrupted, None, ranks=1)
    assert left.value.code == 130
    assert capsys.readouterr().err == "Interrupted: every rank has ended.\n"


def test_what_a_rank_refuses_is_raised_to_the_caller_with_its_traceback_as_the_cause(tmp_path):
    process = start(
        tmp_path,
        """
        def main(config):
            with join_world(device="cpu") as world:
                if world.rank == 1:
                    raise ValueError("no such " + "thing of hunter" + "2")
                dist.barrier()
        """,
        call="""
if __name__ == "__main__":
    try:
        launch(main, Config(10.0), ranks=2, max_restarts=1, censor=lambda text: text.replace("hunter2", "***"))
    except ValueError as refusal:
        say("refused", refusal)
        say(type(refusal.__cause__).__name__, refusal.__cause__)
""",
    )
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, "")
    first, second, *_, last = out.splitlines()
    assert first == "refused no such thing of ***"
    assert second == "Refused Rank 1 of 2 failed:"
    assert last == "ValueError: no such thing of ***"


def test_what_a_victim_says_is_no_refusal():
    refused, torn = Report(1, "failed:\nValueError: no", True, "no"), Report(0, "failed:\ntorn")
    assert find_refusal(1, [refused, torn]) == find_refusal(0, [refused, torn]) == "no"
    assert find_refusal(0, [torn, refused]) is None, "another failed before"
    assert find_refusal(0, [refused]) is None, "nor if the first seen was killed"
    assert find_refusal(0, []) is None
