"""Start one process per local rank from inside a script, so that `python train.py` needs no torchrun.

torch's elastic launcher does the rendezvous and watches the processes. What is added here is what a person at a
terminal needs: the error of the rank that failed first, told once; one exit code; and nothing left running.
"""

import atexit
import logging
import os
import pickle
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Generic, NamedTuple, Never, TypeVar
from uuid import uuid4

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from omni_mesh.relay import Relay, Stopped, one_interrupt, relay_signals
from omni_mesh.reports import Report, find_refusal, read_reports, tell_failure, write_report
from omni_mesh.shield import no_child_left, quiet, shielded
from omni_mesh.signals import LEAVE, SAVE, ignore_saves
from omni_mesh.spec import MeshConfig, ranks_asked
from omni_mesh.started import world_size

C = TypeVar("C")

_MONITOR_INTERVAL_S: Final = 0.1
FINAL: Final = (ValueError, FloatingPointError)
"""What a rank raises of its request or its numbers, which are the same when it is started again."""


@dataclass(frozen=True, slots=True)
class _Job(Generic[C]):
    """What a started process is given, pickled."""

    main: Callable[[C], None]
    config: C
    ranks: int
    launcher: int
    """Process id of the one that starts the ranks."""
    reports: Path
    """Folder where a failing rank leaves its report."""
    told: Path
    """Is there once the launcher was told to leave."""


class _Failed(NamedTuple):
    """What is known of a start of all ranks that failed."""

    text: str
    code: int
    """To exit with."""
    is_final: bool
    refusal: str | None


class Refused(Exception):
    """Where a rank raised a `ValueError`, as the cause of the one that `launch` raises: its traceback, as text."""


def planned_ranks(config: MeshConfig) -> int:
    """The number of ranks that `config` will run on: those already started, or else those that it asks of this machine.

    Raises `ValueError` as `ranks_asked` does.
    """
    return world_size() or ranks_asked(config, torch.cuda.device_count())


def launch(
    main: Callable[[C], None],
    config: C,
    *,
    ranks: int | None = None,
    max_restarts: int = 0,
    censor: Callable[[str], str] = str,
) -> None:
    """Run `main(config)` on `ranks` local ranks, by default one per GPU, and return when all are done.

    Effect: starts processes, unless this process is a rank already (torchrun, srun, or a rank of `launch`) or `ranks`
    is 1: then it simply calls `main(config)`. `main` and `config` are pickled, so `main` is a function of a module or
    of the script, called under `if __name__ == "__main__":`. CPU threads are divided among the ranks, unless
    OMP_NUM_THREADS says otherwise.

    The first rank that fails ends the others; its traceback goes through `censor`, for what should not be shown, to
    stderr, and `SystemExit` is raised, with the code of the rank (128 + the signal, if one killed it). A `ValueError`,
    by which a rank refuses what was asked, is raised here as it would be by a `main` called plainly, and nothing is
    printed; its cause, a `Refused`, has the traceback of the rank. But first all ranks are started again, up to
    `max_restarts` times, for a `main` that goes on from what it saved; not after a `ValueError` or
    `FloatingPointError`, which would be raised again. Ctrl-C ends all ranks by SIGTERM, after 30 seconds by SIGKILL,
    and raises `SystemExit` too; repeated within 2 seconds it changes nothing, later it ends all at once.
    SIGTERM and SIGUSR1 are handed on to the ranks: see `heed_signals` for a rank that saves its work; of one that does
    not heed them yet, SIGTERM is the end, and SIGUSR1 does nothing. A second SIGTERM ends all.
    Raises `ValueError` if `ranks` is below 1, `max_restarts` below 0, if `main` and `config` cannot be sent to another
    process, or if a rank raises it.
    """
    if ranks is None:
        ranks = max(1, torch.cuda.device_count())
    if ranks < 1:
        raise ValueError(f"ranks={ranks}: at least one process does the work. Leave ranks out for one per GPU.")
    ignore_saves()
    if world_size() is not None:
        main(config)
        return
    if max_restarts < 0:
        raise ValueError(f"max_restarts={max_restarts}: ranks are started again at least 0 times.")
    if ranks == 1 and not max_restarts:
        with one_interrupt():
            try:
                main(config)
            except KeyboardInterrupt:
                _leave("Interrupted", signal.SIGINT)
        return
    _check_sendable(main, config)
    with (
        one_interrupt(),
        TemporaryDirectory(prefix="omni-launch-") as folder,
        relay_signals(Path(folder) / "leave") as relay,
    ):
        for restart in range(max_restarts + 1):
            (reports := Path(folder) / f"reports-{restart}").mkdir()
            failed = _start_ranks(_Job(main, config, ranks, os.getpid(), reports, relay.told), relay)
            if failed is None:
                return
            if failed.refusal is not None:
                raise ValueError(censor(failed.refusal)) from Refused(censor(failed.text))
            print(censor(failed.text), file=sys.stderr, flush=True)
            if restart == max_restarts or failed.is_final or relay.told_to_leave:
                raise SystemExit(failed.code)
            print(f"All ranks are started again, {restart + 1} of {max_restarts} times.", file=sys.stderr, flush=True)


def _check_sendable(main: Callable[[C], None], config: C) -> None:
    try:
        pickle.dumps((main, config))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"main and config are sent to the processes of the ranks, which failed: {error}. Make `main` a function at "
            f"the top of a module, not a lambda or an inner function, and `config` plain data."
        ) from error
    import __main__

    if main.__module__ == "__main__" and not hasattr(__main__, "__file__"):
        raise ValueError("The ranks import `main` from its file, but it was typed in or piped. Put it in a script.")


def _start_ranks(job: _Job[C], relay: Relay) -> _Failed | None:
    """Run the job on all ranks. If one fails: how.

    Raises `SystemExit` if stopped.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job.ranks,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # A free port.
        local_addr="localhost",  # The host's own name may not resolve, as on a laptop.
        max_restarts=0,
        monitor_interval=_MONITOR_INTERVAL_S,
        start_method="spawn",
        # Ctrl-C stays a KeyboardInterrupt here, on which the agent ends the ranks by SIGTERM. See `shielded`.
        signals_to_handle="SIGHUP,SIGQUIT",
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    try:
        with quiet(), shielded(), no_child_left():
            elastic_launch(config, _run_rank)(job)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if relay.told_to_leave and failure.exitcode == -signal.SIGTERM:
            _leave("Stopped by SIGTERM", signal.SIGTERM)
        if failure.exitcode == -signal.SIGINT:  # Ctrl-C reaches the ranks as well, and one was seen to die of it.
            _leave("Interrupted", signal.SIGINT)
        reports = read_reports(job.reports)
        told, code = tell_failure(rank, failure.exitcode, job.ranks, reports)
        return _Failed(told, code, any(report.is_final for report in reports), find_refusal(rank, reports))
    except KeyboardInterrupt:
        _leave("Interrupted", signal.SIGINT)
    except Stopped:
        _leave("Stopped by SIGTERM", signal.SIGTERM)
    except SignalException as error:
        _leave(f"Stopped by {error.sigval.name}", error.sigval)
    return None


def _leave(why: str, by: signal.Signals) -> Never:
    print(f"{why}: every rank has ended.", file=sys.stderr, flush=True)
    raise SystemExit(128 + by) from None


def _run_rank(job: _Job[C]) -> None:
    """What a started process does: `main(config)`, and on failure a report."""
    # Ctrl-C is the launcher's to handle. Here it just ends the process, also inside a collective, where Python's own
    # handler never gets to run; so does the SIGINT that torch arranges for when the launcher dies.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(SAVE, signal.SIG_IGN)  # Until the rank heeds it, there is nothing to save.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, SAVE})
    if job.told.exists():
        signal.raise_signal(LEAVE)  # Which came when this process was not there to have it handed on.
    if os.getppid() != job.launcher:
        sys.exit(1)  # The launcher died while this process was still importing.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // job.ranks))
    atexit.register(_end, done := threading.Event())
    try:
        job.main(job.config)
        done.set()
    except SystemExit as leaving:
        if leaving.code in (None, 0):
            done.set()
            return  # To the agent, a process that leaves without returning never finishes.
        with_code = isinstance(leaving.code, int)
        told = f"exited with code {leaving.code}." if with_code else f"exited: {leaving.code}"
        write_report(job.reports, Report(int(os.environ["RANK"]), told))
        raise SystemExit(leaving.code if with_code else 1) from leaving
    except BaseException as error:
        below = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)  # The frames of `main`.
        told = "failed:\n" + "".join(traceback.format_exception(below)).rstrip()
        refusal = str(error) if isinstance(error, ValueError) else None
        write_report(job.reports, Report(int(os.environ["RANK"]), told, isinstance(error, FINAL), refusal))
        raise SystemExit(1) from error


def _end(done: threading.Event) -> None:
    """End the process here if `main` was done, after all that `main` left to do at exit.

    Further on, Python takes itself apart. A thread of a process group that still holds a tensor (gloo's may, long after
    the collective, when the machine is busy) would then abort the process, and a run that was done be told as failed.
    """
    if done.is_set():
        # Finalizers of objects, temporary folders among them, have one handler, which may have been registered before
        # this one and so would come after it; it has no public name.
        weakref.finalize._exitfunc()  # pyright: ignore[reportAttributeAccessIssue]
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
