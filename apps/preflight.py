"""From a command line to running ranks, with every mistake of the request told at once, before anything starts."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Never, ParamSpec, Protocol, TypeVar

from flags import NOTHING, Told, by_flags, parse
from redact import without_secrets

from omni_mesh import MeshConfig, ignore_saves, launch, planned_ranks, world_size

P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D")
_REFUSED: Final = "this run cannot start:\n"


class HasMesh(Protocol):
    """A configuration that says on how many ranks it runs, how often they are started again, and where the run is."""

    @property
    def mesh(self) -> MeshConfig: ...
    @property
    def max_restarts(self) -> int: ...
    @property
    def out(self) -> Path: ...


C = TypeVar("C", bound=HasMesh)


def attempt(problems: list[str], f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """What `f` returns, or None once its complaint is noted in `problems`, so that the next check still runs."""
    try:
        return f(*args, **kwargs)
    except ValueError as problem:
        problems.append(str(problem))
        return None


def refuse(problems: list[str]) -> None:
    """Raise one `ValueError` with all `problems`; nothing if there are none."""
    if problems:
        told = [f"  - {problem}".replace("\n", "\n    ") for problem in dict.fromkeys(problems)]
        raise ValueError(_REFUSED + "\n".join(told))


def told_in(refusal: str) -> list[str]:
    """The problems that `refuse` told, or the one that `refusal` is. Pure.

    >>> told_in("this run cannot start:\\n  - one,\\n    of two lines\\n  - another")
    ['one,\\nof two lines', 'another']
    """
    if not refusal.startswith(_REFUSED):
        return [refusal]
    return [
        problem.replace("\n    ", "\n") for problem in refusal[len(_REFUSED) :].removeprefix("  - ").split("\n  - ")
    ]


def start(
    main: Callable[[C], None],
    decide: Callable[[C], D],
    config_type: type[C],
    manual: str | None,
    *,
    told: Told = NOTHING,
    instead: Callable[[C, D], str] = lambda config, run: "",
) -> None:
    """Parse the command line, let `decide` find what is wrong with it, and run `main` on every rank. If `instead` has
    something to say of what was decided, that is printed, and nothing is run.

    Effect: reads the command line, starts processes. Exits with 2 and the list of problems if there are any, and so if
    a rank raises a `ValueError`, whose traceback is kept in `errors.log` of the run. Nothing that is told of a failure,
    here or by a rank, has a secret of the command line in it.
    """
    ignore_saves()
    sys.excepthook = _tell_failure
    config = parse(config_type, manual, told=told)
    _told(check_restarts, config)
    if words := instead(config, _told(decide, config)):
        print(words, flush=True)
        return
    ranks, restarts = planned_ranks(config.mesh), config.max_restarts
    try:
        launch(main, config, ranks=ranks, max_restarts=restarts, censor=without_secrets)
    except ValueError as problem:
        _tell(f"{problem}\n{keep_trace(problem, config.out)}")


def check_restarts(config: HasMesh) -> None:
    """Raises `ValueError` if ranks are to be started again by somebody who did not start them. Effect: reads the
    environment."""
    if config.max_restarts and world_size() is not None:
        raise ValueError(
            f"--max-restarts {config.max_restarts} is for ranks that this command starts, and this process is a rank "
            "already. Under torchrun give it to torchrun. Under srun leave it out and let Slurm start the job again "
            "(sbatch --requeue): it goes on from the newest checkpoint."
        )


def run(main: Callable[[T], None], config_type: type[T], manual: str | None) -> None:
    """Parse the command line and run `main` in this process. Exits with 2 and the problem if there is one."""
    sys.excepthook = _tell_failure
    _told(main, parse(config_type, manual))


def _told(f: Callable[[T], D], config: T) -> D:
    """What `f(config)` gives; a mistake of the user is told in words, without a traceback."""
    try:
        return f(config)
    except ValueError as problem:
        _tell(str(problem))


def _tell(problem: str) -> Never:
    print(without_secrets(f"error: {by_flags(problem)}"), file=sys.stderr, flush=True)
    sys.exit(2)


def keep_trace(error: BaseException, out: Path) -> str:
    """Where the traceback of `error` can be found from now on, in words. Effect: adds it to `errors.log` in `out`.

    That nobody meant this error for the user is seen there only. Where nothing can be written, the words are it.
    """
    trace = without_secrets("".join(traceback.format_exception(error)))
    when = f"{time.strftime('%Y-%m-%d %H:%M:%S')}, process {os.getpid()} of {socket.gethostname()}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "errors.log").open("a") as file:
            file.write(f"{when}\n{trace}\n")
    except OSError as problem:
        return f"The traceback, as {out} cannot be written ({problem.strerror}):\n{trace}"
    return f"The traceback is in {out / 'errors.log'}."


def _tell_failure(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what Python would of an error that nobody caught, without secrets."""
    told = "".join(traceback.format_exception(kind, error, trace))
    print(without_secrets(told), end="", file=sys.stderr, flush=True)
