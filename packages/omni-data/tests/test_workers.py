"""Laws of worker processes."""

import importlib
import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest
from encoders import Torn, complain, fail_at_once, kill_the_reader

from omni_data import Cursor, Documents, stream_batches, synthetic_documents
from omni_data.workers import start_workers

HOW = {"shard": 0, "num_shards": 1, "rows": 2, "seq_len": 64, "virtual_shards": 4}
SOURCE = synthetic_documents(count=100, median=20)


def children():
    told = subprocess.run(["ps", "-o", "pid,ppid,args"], check=True, capture_output=True, text=True).stdout
    lines = [line.split(maxsplit=2) for line in told.splitlines()[1:]]
    return [int(pid) for pid, parent, args in lines if int(parent) == os.getpid() and "omni_data.worker" in args]


def test_a_worker_that_dies_is_an_error_and_no_hang():
    stream = stream_batches(SOURCE, Cursor(), encode=kill_the_reader, workers=2, **HOW)
    with pytest.raises(RuntimeError, match=r"data worker \d+ was killed by signal 9: out of memory, often"):
        next(stream)


def test_a_worker_that_is_killed_later_is_an_error():
    stream = stream_batches(SOURCE, Cursor(), workers=2, **HOW)
    next(stream)
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="was killed by signal 9"):
        for _ in range(10_000):
            next(stream)


@pytest.mark.parametrize("num_shards", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [2, 4])
def test_all_workers_of_a_rank_have_something_to_do(num_shards, count):
    how = HOW | {"virtual_shards": 48, "num_shards": num_shards, "shard": num_shards - 1, "rows": 4}
    asked = []
    with closing(stream_batches(SOURCE, Cursor(), workers=count, **how)) as stream:
        for _ in range(24 // num_shards):
            next(stream)
        workers = stream.gi_frame.f_locals["windows"].workers
        asked = [worker.asked for worker in workers]
    assert min(asked) > 0 and max(asked) <= 2 * min(asked)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_are_left_to_who_started_it_from_its_first_moment(number, monkeypatch):
    began = []

    def start_and_signal(*args, **kwargs):
        process = popen(*args, **kwargs)
        for wait in (0, 0.01, 0.05):
            time.sleep(wait)
            os.kill(process.pid, number)
        began.append(process)
        return process

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start_and_signal)
    with closing(stream_batches(SOURCE, Cursor(), workers=1, **HOW)) as stream:
        next(stream)
        began[0].send_signal(number)
        for _ in range(40):
            next(stream)
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_what_was_made_before_something_failed_is_the_same_as_without_workers():
    how = HOW | {"rows": 1, "seq_len": 8, "virtual_shards": 1}

    def rows_of(workers):
        rows = []
        with pytest.raises(ValueError, match="torn: cannot be read from here on"):
            rows.extend(b.tokens_BS.tolist() for b, _ in stream_batches(Torn(), Cursor(), workers=workers, **how))
        return rows

    assert len(rows_of(0)) == 1792
    assert rows_of(1) == rows_of(0)


def test_what_fails_in_a_worker_is_told_with_its_traceback_and_bad_data_as_bad_data():
    with pytest.raises(RuntimeError, match=r"(?s)a data worker failed:.*fail_at_once.*not the data's fault"):
        next(stream_batches(SOURCE, Cursor(), encode=fail_at_once, workers=1, **HOW))
    with pytest.raises(ValueError, match="not a good document"):
        next(stream_batches(SOURCE, Cursor(), encode=complain, workers=1, **HOW))


def test_closing_a_stream_ends_its_workers():
    stream = stream_batches(SOURCE, Cursor(), workers=2, **HOW)
    next(stream)
    assert len(children()) == 2
    stream.close()
    assert children() == []


def test_workers_end_with_the_process_that_started_them():
    program = (
        "import os, time\nfrom omni_data import *\n"
        f"s = stream_batches(synthetic_documents(), Cursor(), workers=1, **{HOW!r})\n"
        "next(s); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=os.environ)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    worker = subprocess.run(["pgrep", "-P", str(process.pid)], check=True, capture_output=True, text=True).stdout
    process.kill()
    process.wait()
    process.stdout.close()
    for _ in range(100):
        if subprocess.run(["kill", "-0", worker.strip()], capture_output=True, check=False).returncode:
            return
        time.sleep(0.1)
    raise AssertionError("the worker is still there.")


def test_more_questions_than_the_line_holds_stop_nobody():
    # Every virtual shard is asked for ahead, and answers of a window are larger than what a line holds.
    how = HOW | {"virtual_shards": 5000, "rows": 5000, "seq_len": 64}
    with closing(stream_batches(SOURCE, Cursor(), workers=1, **how)) as stream:
        made = [next(stream)[0].tokens_BS for _ in range(2)]
    alone = stream_batches(SOURCE, Cursor(), **how)
    assert all(np.array_equal(next(alone)[0].tokens_BS, tokens_BS) for tokens_BS in made)


def test_what_cannot_be_sent_is_an_error_with_the_remedy():
    stream = stream_batches(Documents("a", ["b"]), Cursor(), tokenize=lambda text: [1], workers=1, **HOW)
    with pytest.raises(ValueError, match="workers=1 need sources and functions that can be sent"):
        next(stream)


def test_what_a_worker_cannot_import_is_told_with_the_name(tmp_path, monkeypatch):
    (tmp_path / "passing.py").write_text("def encode(document):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    encode = importlib.import_module("passing").encode
    stream = stream_batches(SOURCE, Cursor(), encode=encode, workers=1, **HOW)
    (tmp_path / "passing.py").unlink()
    with pytest.raises(RuntimeError, match=r"(?s)a data worker failed:.*No module named 'passing'"):
        next(stream)


def test_a_worker_imports_no_torch():
    assert start_workers.__module__ == "omni_data.workers"
    program = "import omni_data.worker, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
