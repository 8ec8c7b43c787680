"""The collectives of a true training step, of worlds that are not there: one process, whose collectives go nowhere.

    uv run tests/tracing.py

writes tests/traffic.json anew: what the code of now sends, in order. `test_plan.py` compares it with what a step sends,
and with what a plan says of it.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent.parent / "apps"))

import torch
import torch.distributed as dist
from decide import decide
from place import place
from request import Config
from rows import collate
from step import DataTold, accumulate_grads_, hear_all, scale_or_skip
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training import SMALL

from omni_data import Batch
from omni_mesh import MeshConfig, Requests, make_mesh, ranks_asked
from omni_models import fill_weights, read_config
from omni_parallel import RecomputeConfig, grad_norm, init_state, update

Heard = tuple[str, list[int], int]
TRAFFIC: Final = Path(__file__).parent / "traffic.json"
SEQ: Final = 64
WORLDS: Final = {
    "shard 4": {"mesh": MeshConfig(shard=4)},
    "shard 4, two passes": {"mesh": MeshConfig(shard=4), "batch": 8, "micro": 1},
    "shard 4, recomputed, gathered": {
        "mesh": MeshConfig(shard=4),
        "recompute": RecomputeConfig(1),
        "keep_gathered": True,
    },
    "replicate 2, shard 2": {"mesh": MeshConfig(replicate=2, shard=2)},
    "sp 2, shard 2": {"mesh": MeshConfig(shard=2, sp=2)},
    "sp 2, recomputed": {"mesh": MeshConfig(sp=2), "recompute": RecomputeConfig(1)},
    "ep 2": {"mesh": MeshConfig(ep=2), "model": "moe"},
    "ep 2, shard 4": {"mesh": MeshConfig(shard=4, ep=2), "model": "moe"},
    "ep 2, shard 4, recomputed": {
        "mesh": MeshConfig(shard=4, ep=2),
        "model": "moe",
        "recompute": RecomputeConfig(1),
    },
}
"""By name: changes of a request."""
_NAMES: Final = {
    "_allgather_base_": "all_gather",
    "allgather_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "alltoall_base_": "all_to_all",
    "allreduce_": "all_reduce",
}


def config_of(name: str, folder: Path) -> Config:
    """The request of a world; its model is a directory in `folder`."""
    changes: dict[str, Any] = dict(WORLDS[name])
    model = "tiny"
    if changes.pop("model", None):
        # Choices enough that all tokens go to both ranks: what a rank sends is then known before.
        model = str(folder / "moe")
        read_config("tiny-moe", num_experts_per_tok=4).save_pretrained(model)
    return replace(
        SMALL, **{"model": model, "tokenizer": "bytes", "dtype": "bfloat16", "batch": 4, "seq_len": SEQ, **changes}
    )


class Listen(TorchDispatchMode):
    """While open, every collective is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Heard] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = op.name().partition("::")
        name = name.partition(".")[0]
        if space == "c10d" and name in _NAMES:
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            scripts = [x for x in tree_leaves(args) if isinstance(x, torch.ScriptObject)]
            (group,) = (x for x in scripts if "ProcessGroup" in str(x._type()))
            ranks = dist.get_process_group_ranks(dist.ProcessGroup.unbox(group))
            self.heard.append((_NAMES[name], ranks, max(x.numel() * x.dtype.itemsize for x in tensors)))
        return op(*args, **(kwargs or {}))


@contextmanager
def joined(ranks: int) -> Iterator[None]:
    """While open, this process is rank 0 of so many."""
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def ranks_of_world(config: Config) -> int:
    """As many as its axes ask for."""
    return ranks_asked(config.mesh, 0)


def trace(config: Config) -> list[Heard]:
    """What the second step of a run sends: collective, ranks, bytes of its larger side."""
    ranks = ranks_of_world(config)
    run = decide(config, ranks, saves=False)
    with joined(ranks):
        mesh = make_mesh(run.spec, device_type="cpu")
        model = fill_weights(place(config, run, mesh), None, seed=0)
        state, listen = init_state(model, config.optim), Listen()
        for step in range(2):
            micro = [_rows(config, run.micro, run.spec.sp) for _ in range(run.passes)]
            with listen:
                metrics, _ = accumulate_grads_(model, micro, "chunked")
                metrics |= {"grad_norm": grad_norm(model), **hear_all(Requests(), DataTold(0, 0), torch.device("cpu"))}
                scale = scale_or_skip(metrics, 1.0)
                state = update(state, run.schedule, scale=scale, keep_casts=not run.plan.recompute)
            if step == 0:
                listen.heard.clear()
    return listen.heard


def _rows(config: Config, rows: int, sp: int) -> dict[str, Any]:
    """A microbatch, each row of which is a document."""
    shape, generator = (rows, config.seq_len), torch.Generator().manual_seed(0)
    tokens_BS = torch.randint(0, 256, shape, generator=generator).numpy()
    ones = torch.ones(shape, dtype=torch.int64).numpy()
    positions_BS = torch.arange(config.seq_len).expand(shape).numpy()
    batch = Batch(tokens_BS, positions_BS, ones, tokens_BS, sources_B=torch.zeros(rows, dtype=torch.int64).numpy())
    return collate(batch, 272, ranks=tuple(range(sp))).on(torch.device("cpu"))


def main() -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        told = {name: trace(config_of(name, Path(folder))) for name in WORLDS}
    lines = [
        f"{json.dumps(name)}: [\n  " + ",\n  ".join(map(json.dumps, heard)) + "\n]" for name, heard in told.items()
    ]
    TRAFFIC.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(sum(map(len, told.values())), "collectives")


if __name__ == "__main__":
    main()
