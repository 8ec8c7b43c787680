"""The app, whose rank 1 is killed or stopped once: run as a script by `test_faults.py`.

    DEED=step:SIGKILL FOLDER=/tmp/x python tests/faulty_main.py --steps 6 ...

In step 4, or in the midst of the shard of that step. `FOLDER` has a file for each process that was a rank, by its id,
and from that moment on one called `done`.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "apps"))

import pretrain
from decide import decide
from preflight import start
from request import Config
from trouble import swapped

from omni_ckpt import Point
from omni_mesh import watchdog


def main(config: Config) -> None:
    where, deed = os.environ["DEED"].split(":")
    folder = Path(os.environ["FOLDER"])
    (folder / str(os.getpid())).touch()

    def strike(now: str, step: int) -> None:
        done = folder / "done"
        if (now, step, os.environ["RANK"]) == (where, 4, "1") and not done.exists():
            done.touch()
            os.kill(os.getpid(), getattr(signal, deed))

    def strike_in_save(point: Point, path: Path) -> None:
        if point == "writing":
            strike("save", int(path.stem.removeprefix("step-")))

    def strike_in_step(seed: int, step: int, rank: int) -> None:
        strike("step", step + 1)  # Which counts from nought.
        seed_all_(seed, step, rank)

    seed_all_ = pretrain.seed_all_
    mine = {"seed_all_": strike_in_step, "Keeper": partial(pretrain.Keeper, at=strike_in_save)}
    with swapped(pretrain, **mine), swapped(watchdog, _ANSWER_S=1.0):
        pretrain.main(config)


if __name__ == "__main__":
    start(main, decide, Config, __doc__)
