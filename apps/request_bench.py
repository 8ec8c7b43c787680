"""What a measurement asks for: a run of apps/pretrain.py that keeps nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import request
import tyro

from omni_mesh import MeshConfig


@dataclass(frozen=True, slots=True)
class Config:
    """One run, as of apps/pretrain.py, and what is measured of it."""

    run: Annotated[request.Config, tyro.conf.arg(name="")] = request.Config(steps=25, out=Path("runs/bench"))
    name: str | None = None
    """Of the record to write: NAME.json in --to. Left out: it is only printed."""
    to: Path = Path(__file__).resolve().parent.parent / "benchmarks"
    """Folder of records."""
    skip: int = 5
    """First steps to leave out, which compile and warm up."""
    note: str = ""
    """What a reader of the record should know."""
    commit: str | None = None
    """Of the code measured. Left out: asked of git."""
    check: bool = False
    """Compare with the record of that name instead of writing one, whose command must be this one but for its length;
    the exit code is 1 if this run is more than 5 % slower, or takes as much more memory."""
    kind: Literal["texts", "chats", "media"] = "texts"
    """What --data hold: documents, as for apps/pretrain.py, chats, as for apps/sft.py, or chats with media, as for
    apps/omni.py, of which the time of towers is measured, too."""
    balanced: bool = False
    """Overrule the routers: every expert gets the same number of tokens, which is what perfect balance would be worth.
    Such a run learns nothing that counts."""
    profiled: int = 3
    """Steps to profile on the first rank, after --steps that are measured; 0 for none."""
    trace: Path | None = None
    """File that the trace of these is written to (.json.gz); its folder is made."""

    @property
    def mesh(self) -> MeshConfig:
        """On how many ranks it runs."""
        return self.run.mesh

    @property
    def max_restarts(self) -> int:
        """How often they are started again: what failed is not measured."""
        return 0

    @property
    def explain(self) -> bool:
        """Whether it is told which kernels are used where, and nothing more."""
        return self.run.explain

    @property
    def out(self) -> Path:
        """Where errors are told."""
        return self.run.out


_KEPT: Final = ("save_to", "stop_after", "save_every", "keep", "keep_every", "keep_best", "save_in_background")
_IDLE: Final = "Does nothing here, where a run is measured and not kept."
TOLD: Final = {
    request.Config: {
        **dict.fromkeys((*_KEPT, "max_restarts", "leave_code", "profile"), _IDLE),
        "out": "Directory of errors.log, if it is refused while it is under way. Nothing else is kept there.",
        "steps": "Optimizer steps that are measured, the first of --skip left out; those to profile come after them.",
    },
    request.EvalConfig: dict.fromkeys(("data", "every", "documents"), _IDLE),
    request.TrackConfig: dict.fromkeys(("track", "track_project", "track_name"), _IDLE),
}
"""What the flags of apps/pretrain.py are here, where that is something else: all are taken, so that the command of a
run is that of its measurement."""
