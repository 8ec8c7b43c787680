"""The app, of which rank 1 is killed once, in the midst of a shard: run under torchrun by `test_processes.py`.

torchrun ... tests/faulty_main.py FOLDER MARK
"""

import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "apps"))

import pretrain
from training import SMALL

from omni_ckpt import Point
from omni_mesh import MeshConfig


def main(folder: Path, mark: Path) -> None:
    def strike(point: Point, path: Path) -> None:
        if (point, os.environ["RANK"], path.name) == ("writing", "1", "step-00000004.tmp") and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    pretrain.Keeper = partial(pretrain.Keeper, at=strike)  # pyright: ignore[reportAttributeAccessIssue]
    pretrain.main(replace(SMALL, out=folder, steps=6, save_every=2, mesh=MeshConfig(shard=2)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
