"""One rank of three, run as a script by `test_dcp.py`: every case that needs ranks, in one start of the processes.

    python ranks_main.py RANK FOLDER

Each case leaves what happened on this rank under its name in `FOLDER/outcome-RANK.json`: "ok", or the error. At the end
rank 1 stops for good, and then rank 2 is killed; the others tell of it.
"""

import json
import os
import resource
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from checking import check_shares
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from omni_ckpt import (
    Fault,
    begin_save_dcp,
    latest,
    load_dcp,
    make_staging,
    newest_whole_together,
    prune,
    save_dcp,
    set_aside,
    step_dir,
)
from omni_ckpt.layout import writing
from omni_ckpt.tree import flatten

RANKS = 3


class Uneven(nn.Module):
    """Dims that no number of ranks divides; one that is smaller than the number of ranks, so that a shard is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(33, 65)
        self.down = nn.Linear(65, 7, dtype=torch.bfloat16)
        self.gain = nn.Parameter(torch.randn(2))

    def forward(self, x):
        return self.down(self.up(x).bfloat16()).float().sum() * self.gain.sum()


def trained(seed: int, ranks: int) -> dict:
    """The tree of a model and its AdamW after one step, sharded over `ranks`."""
    torch.manual_seed(seed)
    model, mesh = Uneven(), init_device_mesh("cpu", (ranks,))
    fully_shard(model.down, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 33)).backward()
    optimizer.step()
    params = dict(model.named_parameters())
    return {
        "state": {
            "model": params,
            "optimizer": {name: dict(optimizer.state[param]) for name, param in params.items()},
            "step": seed,
        }
    }


def whole(tree: dict) -> dict[str, torch.Tensor]:
    tensors, _ = flatten(tree)
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).detach() for name, t in tensors.items()}


@contextmanager
def group(rank: int, ranks: int, folder: Path) -> Iterator[None]:
    join(rank, ranks, folder / f"store-{ranks}", 300)
    yield
    dist.barrier()
    dist.destroy_process_group()


def join(rank: int, ranks: int, store: Path, timeout_s: float) -> None:
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timeout)


def outcome(act: Callable[[], object]) -> str:
    try:
        act()
    except (ValueError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


@contextmanager
def full_disk(on: bool) -> Iterator[None]:
    """No file grows beyond a few bytes in this process, as on a disk that is full. Python ignores the signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if on else soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_on_two(rank: int, folder: Path) -> None:
    tree = trained(seed=1, ranks=2)
    save_dcp(tree, folder / "two")
    expected = whole(tree)
    if rank == 0:
        torch.save(expected, folder / "two.pt")


def load_on_three(folder: Path) -> None:
    tree = trained(seed=2, ranks=3)
    expected = torch.load(folder / "two.pt")
    assert not torch.equal(whole(tree)["state.model.up.weight"], expected["state.model.up.weight"])
    loaded = load_dcp(tree, folder / "two")
    found = whole(dict(loaded))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert loaded["state"]["step"] == 1
    assert loaded["state"]["model"]["up.weight"] is tree["state"]["model"]["up.weight"]
    save_dcp(loaded, folder / "three")


def failures(rank: int, folder: Path) -> dict[str, str]:
    """A save that fails on rank 1 only; after each, that nothing is there."""
    big = {"x": torch.full((100_000,), float(rank)), f"own{rank}": torch.full((100_000,), float(rank)), "step": 1}
    path = folder / "failed" / "step-00000001"
    happened = {"bad leaf": outcome(lambda: save_dcp(big | {"bad": {1}} if rank == 1 else big, path))}
    with full_disk(on=rank == 1):
        happened["full disk"] = outcome(lambda: save_dcp(big, path))
    with full_disk(on=rank == 0):
        # Only the plain values of rank 0 are too long.
        happened["full disk at the end"] = outcome(lambda: save_dcp({"text": "x" * 10_000}, path))
    happened["other path"] = outcome(lambda: save_dcp(big, path if rank != 1 else path.with_name("other")))
    happened["other names"] = outcome(lambda: save_dcp(big | ({"more": 1} if rank == 1 else {}), path))
    dist.barrier()
    happened["left"] = str(sorted(str(p) for p in path.parent.rglob("*")))
    dist.barrier()
    writing(path).mkdir(parents=True, exist_ok=True)
    (writing(path) / "stale").touch()
    dist.barrier()
    happened["after"] = outcome(lambda: save_dcp(big, path))
    happened["files"] = str(sorted(p.name for p in path.iterdir()))
    return happened


def parts(rank: int, folder: Path) -> dict[str, str]:
    """Ranks that hold different parts of a tree, as in a pipeline."""
    path = save_dcp({f"own{rank}": torch.full((2,), float(rank)), "all": torch.ones(1)}, folder / "parts")
    mine = {f"own{rank}": torch.zeros(2), "all": torch.zeros(1)}
    happened = {"parts": outcome(lambda: load_dcp(mine, path))}
    if happened["parts"] == "ok" and mine[f"own{rank}"].tolist() != [float(rank)] * 2:
        happened["parts"] = f"wrong values: {mine}"
    nobody = {"own1": torch.zeros(2), "own2": torch.zeros(2), "all": torch.zeros(1)}
    happened["part of nobody"] = outcome(lambda: load_dcp(nobody, path))
    bent = mine | {"all": torch.zeros(2 if rank == 2 else 1)}
    happened["one bent"] = outcome(lambda: load_dcp(bent, path))
    happened["elsewhere"] = outcome(lambda: load_dcp(mine, path if rank != 1 else folder / "two"))
    return happened


def background(rank: int, folder: Path) -> dict[str, str]:
    """Saves that are begun; the last fails on rank 1."""
    tree = trained(seed=3, ranks=3)
    expected = whole(tree)
    params = tree["state"]["model"].values()
    threads = threading.active_count()
    own = dist.new_group(backend="gloo", timeout=timedelta(seconds=60))
    staging = make_staging(tree)
    for number in range(3):
        # The first makes a group of its own.
        begun = begin_save_dcp(tree, folder / f"begun-{number}", staging=staging, group=own if number else None)
        before = [param.detach().clone() for param in params]
        with torch.no_grad():
            for param in params:
                param.add_(1)
        dist.barrier()  # The default group is free while it is written.
        begun()
        with torch.no_grad():
            for param, value in zip(params, before, strict=True):
                param.copy_(value)
    founds = [whole(dict(load_dcp(trained(seed=4, ranks=3), folder / f"begun-{number}"))) for number in range(3)]
    same = all(torch.equal(found[name], expected[name]) for found in founds for name in expected)
    full = begin_save_dcp(tree, folder / "begun-full", group=own, at=Fault("writing", 1, "full"))
    happened = {"begun": "ok" if same else "wrong values", "begun on a full disk": outcome(full)}
    happened["threads"] = str(threading.active_count() - threads)
    dist.destroy_process_group(own)
    return happened


def recovered(folder: Path) -> dict[str, str]:
    """The newest of three checkpoints is damaged where only rank 2 reads."""
    root = folder / "damaged"
    for step in (1, 2, 3):
        save_dcp(trained(seed=step, ranks=3), step_dir(root, step))
    victim = step_dir(root, 3) / "__1_0.distcp"
    if dist.get_rank() == 0:
        shard = bytearray(victim.read_bytes())
        shard[len(shard) // 2] ^= 1
        victim.write_bytes(shard)
    dist.barrier()
    refused = outcome(lambda: load_dcp(trained(seed=0, ranks=3), step_dir(root, 3)))
    choice = newest_whole_together(root)
    set_aside(choice)
    dist.barrier()
    assert choice.path is not None
    return check_shares(choice.path) | {
        "damaged": refused,
        "newest whole": f"{choice.path.name}: {list(choice.damaged.values())}",
        "set aside": str(sorted(path.name for path in root.iterdir())),
    }


def lost(rank: int, folder: Path) -> dict[str, str]:
    """Peers that stop, and peers that die, in the midst of a save."""
    happened = {}
    tree = {f"own{rank}": torch.full((100_000,), float(rank))}
    join(rank, 3, folder / "store-stopped", 4)
    began = time.monotonic()
    happened["stopped"] = outcome(lambda: save_dcp(tree, folder / "stopped", at=Fault("writing", 1, "stop")))
    happened["seconds to see it"] = str(time.monotonic() - began < 30)
    dist.destroy_process_group()
    join(rank // 2, 2, folder / "store-killed", 60)
    began = time.monotonic()
    happened["killed"] = outcome(lambda: save_dcp(tree, folder / "killed", at=Fault("writing", 1, "kill")))
    happened["seconds to see that"] = str(time.monotonic() - began < 20)
    happened["nothing published"] = str([(folder / name).exists() for name in ("stopped", "killed")])
    return happened


def pruned(folder: Path) -> dict[str, str]:
    root = folder / "run"
    for step in (1, 2, 3):
        save_dcp({"step": step}, step_dir(root, step))
    dist.barrier()
    gone = prune(root, 2) if dist.get_rank() == 0 else []
    dist.barrier()
    left = sorted(path.name for path in root.iterdir())
    dist.barrier()
    return {"pruned": str([path.name for path in gone]), "kept": str(left), "latest": str(latest(root))}


def write(rank: int, folder: Path, happened: dict[str, str]) -> None:
    (folder / f"outcome-{rank}.json").write_text(json.dumps(happened))


def main(rank: int, folder: Path) -> None:
    warnings.simplefilter("error")
    happened: dict[str, str] = {}
    if rank < 2:
        with group(rank, 2, folder):
            happened["save on two"] = outcome(lambda: save_on_two(rank, folder))
    with group(rank, RANKS, folder):
        happened["load on three"] = outcome(lambda: load_on_three(folder))
        happened |= failures(rank, folder) | parts(rank, folder) | pruned(folder)
        happened |= background(rank, folder) | recovered(folder)
    write(rank, folder, happened)
    write(rank, folder, happened | lost(rank, folder))
    # A thread of gloo that still holds a tensor would abort the process when Python takes itself apart.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
