"""One training run, killed again and again, ends as the run that nobody killed: every loss and every bit.

    uv run tests/soak.py --kills 200

A round starts the run on two ranks, which go on from what they find, and kills one of them: at a point of a save that
is drawn, or at a moment that is drawn, be it of a step, of a load or of the start. The other is killed soon after, as a
launcher would. A round goes a few steps at most: where it gets there first it leaves, and counts for nothing. Rounds go
on until there were so many kills; the last is left alone.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final, get_args

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent / "apps"))

from ranks import IMPORTED, free_port
from training import SMALL

from omni_ckpt import Point, latest, load_dcp, step_of, stored
from omni_mesh import MeshConfig


@dataclass(frozen=True, slots=True)
class Config:
    """How long."""

    kills: int = 200
    """Ranks to kill."""
    seed: int = 0
    """Of what is drawn."""
    steps_a_kill: float = 5.0
    """Length of the run: so many steps for each kill."""


STEPS_A_ROUND: Final = 12


@dataclass(frozen=True, slots=True)
class Blow:
    """A kill: of which rank, and when."""

    rank: int
    point: Point | None
    """Of a save, and at which time that it is come to..."""
    time: int
    after: float
    """...or so many seconds after the start."""


def main(config: Config) -> dict[str, Any]:
    """Run both, compare, and print what happened. Effect: processes, a temporary folder.

    Raises:
        AssertionError: if they differ.
    """
    folder = Path(mkdtemp(prefix="soak-"))
    steps = 6 + int(config.kills * config.steps_a_kill)
    asked = replace(SMALL, steps=steps, save_every=2, keep=2, batch=4, mesh=MeshConfig(shard=2))
    began = time.monotonic()
    assert run_once(replace(asked, out=folder / "whole", save_every=steps), None) == "ended"
    draw = random.Random(config.seed)
    ends, escapes = Counter[str](), 0
    killed = replace(asked, out=folder / "killed")
    while ends.total() < config.kills:
        found = latest(killed.out)
        at = step_of(found) if found else 0
        blow = draw_blow(draw, early=at / steps > ends.total() / config.kills)
        end = run_once(replace(killed, stop_after=min(at + STEPS_A_ROUND, steps - 1)), blow)
        if end == "ended":
            escapes += 1
            continue
        ends[end] += 1
        if ends.total() % 10 == 0:
            print(f"{ends.total()} kills, {time.monotonic() - began:.0f} s, at {found and found.name}", flush=True)
    last = run_once(killed, None)
    assert last == "ended", last
    compare(folder / "whole", folder / "killed", steps)
    seconds = round(time.monotonic() - began)
    told = {"kills": ends.total(), "steps": steps, "ends": dict(ends), "escapes": escapes, "seconds": seconds}
    print(json.dumps(told), flush=True)
    shutil.rmtree(folder)
    return told


def draw_blow(draw: random.Random, *, early: bool) -> Blow:
    """Half of them at a point of a save, half at any moment; `early` in the round, or not."""
    point = draw.choice(get_args(Point)) if draw.random() < 0.5 else None
    # Only the first rank comes to the points after the shards.
    rank = 0 if point in ("indexed", "sealed", "published", "pruned") else draw.randrange(2)
    return Blow(rank, point, 1 if early else draw.randrange(1, 5), draw.uniform(0.1, 2.0 if early else 5.0))


def run_once(asked: Any, blow: Blow | None) -> str:
    """Start the run on two ranks: "ended" if it came to its end, or else where the blow fell."""
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    port = free_port()
    ranks = [context.Process(target=be_rank, args=(rank, port, asked, blow), daemon=True) for rank in range(2)]
    began = time.monotonic()
    for process in ranks:
        process.start()
    struck = None if blow is None or blow.point else began + blow.after
    while all(process.exitcode is None for process in ranks):
        if struck is not None and time.monotonic() >= struck:
            assert blow is not None
            ranks[blow.rank].kill()
        time.sleep(0.005)
    if all(wait(process) == 0 for process in ranks):
        return "ended"
    assert blow is not None, f"a rank left by itself: {[process.exitcode for process in ranks]}"
    assert ranks[blow.rank].exitcode == -signal.SIGKILL, [process.exitcode for process in ranks]
    return blow.point or "any moment"


def wait(process: BaseProcess) -> int | None:
    """The exit code of `process`, which is killed if it does not end soon."""
    process.join(0.3 if process.exitcode is None else 0)
    if process.exitcode is None:
        time.sleep(0.2)
        process.kill()
        process.join()
    return process.exitcode


def be_rank(rank: int, port: int, asked: Any, blow: Blow | None) -> None:
    """What a rank does: the app's `main`, with the blow at its point."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    torch.set_num_threads(1)
    import pretrain

    times = Counter[Point]()

    def strike(point: Point, path: Path) -> None:
        times[point] += 1
        if blow is not None and (blow.rank, blow.point, blow.time) == (rank, point, times[point]):
            os.kill(os.getpid(), signal.SIGKILL)

    pretrain.Keeper = partial(pretrain.Keeper, at=strike)  # pyright: ignore[reportAttributeAccessIssue]
    pretrain.main(asked)
    os._exit(0)


def compare(whole: Path, killed: Path, steps: int) -> None:
    """Raises `AssertionError` unless both runs have the same numbers in every step, and the same state at the end."""
    rows = [[json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] for out in (whole, killed)]
    names = ("step", "loss", "grad_norm", "lr", "tokens", "targets")
    numbers = [[[row[name] for name in names] for row in each] for each in rows]
    assert [row[0] for row in numbers[1]] == list(range(1, steps + 1))
    assert numbers[0] == numbers[1]
    states = []
    for out in (whole, killed):
        found = latest(out)
        assert found is not None
        tensors = {name: torch.zeros(spec.shape, dtype=spec.dtype) for name, spec in stored(found).items()}
        states.append(load_dcp(tensors, found, strict=False))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
