"""From a command line to running ranks, with every mistake of the request told at once, before anything starts."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Never, Protocol, TypeVar

from early import tell_interrupt
from flags import NOTHING, Told, by_flags, parse
from redact import without_secrets
from settings import ask

from omni_mesh import MeshConfig, ignore_saves, world_size

T = TypeVar("T")
D = TypeVar("D")


_INTERRUPTED: Final = 128 + signal.SIGINT
"""The code with which Ctrl-C ends a command."""
_CODE: Final = " " * 4
"""How a line of source begins in a traceback."""


class HasMesh(Protocol):
    """A configuration that says on how many ranks it runs, how often they are started again, and where the run is."""

    @property
    def mesh(self) -> MeshConfig: ...
    @property
    def max_restarts(self) -> int: ...
    @property
    def out(self) -> Path: ...


C = TypeVar("C", bound=HasMesh)


def answer(config_type: type[object], manual: str | None, *, told: Told = NOTHING) -> None:
    """What `start` does before anything is decided, for an app to do before it imports what that takes, torch first.

    Effect: exits if help is asked for, or settings are to be printed, and with 2 if files or flags are wrong.
    """
    sys.excepthook = _tell_failure
    _told(partial(ask, config_type, told=told), manual)
    _tell_loading()


def check_flags(config_type: type[object], manual: str | None) -> None:
    """What `run` does first, for an app to do before it imports what takes long.

    Effect: exits if help is asked for, and with 2 if flags are wrong.
    """
    sys.excepthook = _tell_failure
    parse(config_type, manual)
    _tell_loading()


def start(
    main: Callable[[C], None],
    decide: Callable[[C], D],
    config_type: type[C],
    manual: str | None,
    *,
    told: Told = NOTHING,
    instead: Callable[[C, D], str] = lambda config, run: "",
    left: Callable[[C], str] = lambda config: "",
) -> None:
    """Read the command line and the files of settings that it names, let `decide` find what is wrong with them, and run
    `main` on every rank. If `instead` has something to say of what was decided, that is printed, and nothing is run.
    What `left` says is printed after Ctrl-C.

    Effect: reads the command line and files, starts processes. Exits with 2 and the list of problems if there are any,
    and so if a rank raises a `ValueError`, whose traceback is kept in `errors.log` of the run. Nothing that is told of
    a failure, here or by a rank, has a secret of the command line in it.
    """
    from omni_mesh import launch, planned_ranks

    ignore_saves()
    sys.excepthook = _tell_failure
    config = _told(partial(ask, config_type, told=told), manual)
    _told(check_restarts, config)
    if words := instead(config, _told(decide, config)):
        print(words, flush=True)
        return
    ranks, restarts = planned_ranks(config.mesh), config.max_restarts
    try:
        launch(main, config, ranks=ranks, max_restarts=restarts, censor=without_secrets)
    except ValueError as problem:
        _tell(f"{problem}\n{keep_trace(problem, config.out)}")
    except SystemExit as leaving:
        if leaving.code == _INTERRUPTED and (words := ask_what_is_left(left, config)):
            print(without_secrets(words), file=sys.stderr, flush=True)
        raise


def ask_what_is_left(left: Callable[[T], str], config: T) -> str:
    """What `left` says; that it cannot be said, if storage does not answer: the run has ended all the same."""
    try:
        return left(config)
    except Exception as problem:  # noqa: BLE001  Storage raises what it likes.
        return f"What is left of it cannot be looked for: {problem}"


def check_restarts(config: HasMesh) -> None:
    """Raises `ValueError` if ranks are to be started again by somebody who did not start them. Effect: reads the
    environment."""
    if config.max_restarts and world_size() is not None:
        raise ValueError(
            f"--max-restarts {config.max_restarts} is for ranks that this command starts, and this process is a rank "
            "already. Under torchrun give it to torchrun. Under srun leave it out and let Slurm start the job again "
            "(sbatch --requeue): it goes on from the newest checkpoint."
        )


def run(
    main: Callable[[T], None],
    config_type: type[T],
    manual: str | None,
    *,
    told: Told = NOTHING,
    read: Callable[..., T] = parse,
) -> None:
    """Read the command line, and with `ask` as `read` the files of settings that it names, and run `main` in this
    process. Exits with 2 and the problem if there is one."""
    sys.excepthook = _tell_failure
    config = _told(partial(read, config_type, told=told), manual)
    try:
        _told(main, config)
        sys.stdout.flush()
    except BrokenPipeError:  # Whoever read it has seen enough, as `head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _told(f: Callable[[T], D], config: T) -> D:
    """What `f(config)` gives; a mistake of the user is told in words, without a traceback."""
    try:
        return f(config)
    except ValueError as problem:
        _tell(str(problem))


def _tell(problem: str) -> Never:
    print(without_secrets(f"error: {by_flags(problem)}"), file=sys.stderr, flush=True)
    sys.exit(2)


def _tell_loading() -> None:
    """Say to a person why nothing is seen for seconds. Effect: prints."""
    try:
        is_rank = world_size() is not None
    except ValueError:  # It is told by who needs to know of which.
        is_rank = True
    if sys.stderr.isatty() and not is_rank:
        print("loading torch and transformers ...", file=sys.stderr, flush=True)


def keep_trace(error: BaseException, out: Path) -> str:
    """Where the traceback of `error` can be found from now on, in words. Effect: adds it to `errors.log` in `out`.

    That nobody meant this error for the user is seen there only. Where nothing can be written, the words are it. What
    the error says is told by flags, as to the user.
    """
    lines = "".join(traceback.format_exception(error)).splitlines()
    trace = without_secrets("\n".join(line if line.startswith(_CODE) else by_flags(line) for line in lines))
    when = f"{time.strftime('%Y-%m-%d %H:%M:%S')}, process {os.getpid()} of {socket.gethostname()}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "errors.log").open("a") as file:
            file.write(f"{when}\n{trace}\n\n")
    except OSError as problem:
        return f"The traceback, as {out} cannot be written ({problem.strerror}):\n{trace}\n"
    return f"The traceback is in {out / 'errors.log'}."


def _tell_failure(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what Python would of an error that nobody caught, without secrets."""
    if issubclass(kind, KeyboardInterrupt):
        tell_interrupt(kind, error, trace)
        return
    told = "".join(traceback.format_exception(kind, error, trace))
    print(without_secrets(told), end="", file=sys.stderr, flush=True)
