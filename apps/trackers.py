"""Services that show runs, each as a function that begins to tell it of one: TensorBoard, Weights & Biases, Trackio.

What they are told are the rows of metrics.jsonl and eval.jsonl. A run that goes on is the same run to them, and a step
that is written again is there once, as it was written last; docs/watching.md says how, for each.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from strict_yaml import tell_yaml

Values = Mapping[str, float]
END_S: Final = 60.0
"""How long the end of a run waits for a service to take what it was told."""


@dataclass(frozen=True, slots=True)
class Tracked:
    """A run, as a service is told of it."""

    out: Path
    project: str
    name: str
    settings: Mapping[str, Any]
    """Without secrets."""
    since: int
    """The step that it stands at. What a service has after it was told by a run that did not get to save it."""
    mark: Path
    """File with the name of the run at the service; it is there if the service has all rows that there are."""

    def known_as(self) -> str:
        """The name of the run at the service, if it has all rows until now; else a new one. Effect: reads a file."""
        return self.mark.read_text() if self.mark.exists() else token_hex(4)


class Tracker(NamedTuple):
    """A service that was told of a run."""

    id: str
    """Of the run there."""
    has: int
    """The step until which it has all rows."""
    log: Callable[[int, Values], None]
    close: Callable[[bool], None]
    """Called with whether the run failed; waits until what it was told is kept."""


def open_tensorboard(run: Tracked) -> Tracker:
    """Event files in `tensorboard` of the run. Effect: writes one that takes back what is after `run.since`, or all,
    if rows are missing."""
    # Classes of protocol buffers are made when they are imported.
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.plugins.text.metadata import create_summary_metadata
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util.tensor_util import make_tensor_proto

    has = run.since if run.mark.exists() else 0
    writer = EventFileWriter(str(run.out / "tensorboard"))
    start = SessionLog(status=SessionLog.START)
    writer.add_event(Event(wall_time=time.time(), step=has + 1, session_log=start))

    def write(step: int, values: Sequence[Any]) -> None:
        writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        writer.flush()

    def log(step: int, values: Values) -> None:
        write(step, [Summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    # As text, which is Markdown: four spaces begin what is shown as it is.
    text = make_tensor_proto("".join(f"    {line}\n" for line in tell_yaml(run.settings).splitlines()))
    how = create_summary_metadata("", "")
    write(run.since, [Summary.Value(tag="config/text_summary", tensor=text, metadata=how)])
    return Tracker(run.known_as(), has, log, lambda failed: writer.close())


def open_trackio(run: Tracked) -> Tracker:
    """A run of Trackio, anew with all its rows. Effect: deletes the same run of before, where its records are here."""
    import trackio

    known = run.known_as()
    name = f"{run.name}-{known}"
    try:
        before = [one for one in trackio.Api().runs(run.project) if one.name == name]
    except ValueError:  # There is no such project yet.
        before = []
    for one in before:
        one.delete()
    begun = trackio.init(run.project, name=name, config=dict(run.settings), embed=False)
    return Tracker(known, 0, lambda step, values: begun.log(dict(values), step=step), lambda failed: begun.finish())


def open_wandb(run: Tracked) -> Tracker:
    """A run of Weights & Biases: the one of before, or another, with all its rows, if that has steps which are written
    again, or is not to be asked, as it is offline. Effect: starts a process; talks to the service."""
    import wandb

    online = _wandb_settings().mode == "online"
    # Not the command line, the address of the repository, or what is printed, in which there may be secrets.
    how = wandb.Settings(x_disable_meta=True, disable_git=True, console="off", finish_timeout=END_S - 10)

    def begin(known: str) -> Any:
        about = {"project": run.project, "name": run.name, "config": dict(run.settings), "dir": str(run.out)}
        return wandb.init(id=known, resume="allow" if online else None, reinit="create_new", settings=how, **about)

    begun = begin(run.known_as() if online else token_hex(4))
    if (has := max(0, begun.starting_step - 1)) > run.since:
        begun.finish(exit_code=1)
        begun, has = begin(token_hex(4)), 0

    def close(failed: bool) -> None:
        begun.finish(exit_code=int(failed))

    return Tracker(begun.id, has, lambda step, values: begun.log(dict(values), step=step), close)


OPENERS: Final[Mapping[str, Callable[[Tracked], Tracker]]] = MappingProxyType(
    {"tensorboard": open_tensorboard, "wandb": open_wandb, "trackio": open_trackio}
)
"""By name, which is that of the package, and of the extra that brings it."""


def tracker_problems(names: Sequence[str]) -> list[str]:
    """Why some of these cannot be told of a run, in words. Effect: looks for packages, reads the environment."""
    problems = [
        f"--track {name}: it is not installed: uv sync --all-packages --extra {name}."
        for name in names
        if find_spec(name) is None
    ]
    return problems + (find_wandb_problems() if "wandb" in names and find_spec("wandb") else [])


def find_wandb_problems() -> list[str]:
    """Why Weights & Biases would not know who sends it rows. Effect: reads the environment, and files of keys."""
    from requests.utils import get_netrc_auth

    settings = _wandb_settings()
    known = settings.api_key or settings.identity_token_file or get_netrc_auth(settings.base_url)
    if settings.mode in ("offline", "dryrun", "disabled") or known:
        return []
    return [
        f"--track wandb: there is no key for {settings.base_url}: run `wandb login`, or set WANDB_API_KEY; with "
        "WANDB_MODE=offline the rows stay here, until `wandb sync` sends them."
    ]


def _wandb_settings() -> Any:
    """What the environment and the files of Weights & Biases say. Effect: reads them."""
    import wandb

    settings = wandb.Settings()
    settings.update_from_system_settings()
    settings.update_from_env_vars(dict(os.environ))
    return settings
