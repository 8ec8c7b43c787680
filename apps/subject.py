"""What a plan is asked for, and what is known of it before anything is tried: the model, the GPUs, and what cannot be.

No GPU is asked, nor are data read: a plan is of shapes alone.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Final

import request
import torch
import tyro
from decide import cut_rows, read_merged
from footprint import Sizes, measure_units
from gpus import Cluster, find_gpu
from limits import check_numbers
from refusal import attempt, refuse
from rehearse import Stage, set_stage
from request_chats import ChatConfig
from request_media import MediaConfig

from omni_mesh import MeshConfig, MeshSpec, resolve_mesh
from omni_models import ModelFacts, build_model, choose_loss, describe, explain, fitting_kernels, unsupported
from omni_parallel import ParallelPlan, fp8_problems, plan_parallel

MOST_GPUS: Final = 16384


@dataclass(frozen=True, slots=True)
class Config:
    """One run, as of apps/pretrain.py, and the GPUs that it is planned for."""

    run: Annotated[request.Config, tyro.conf.arg(name="")] = request.Config()
    chat: ChatConfig = ChatConfig()
    media: MediaConfig = MediaConfig()
    tower_lr: float | None = None
    """Changes nothing of a plan."""
    gpus: int = 8
    """Ranks of the run, a GPU each."""
    gpu: str = "h200"
    """Which: h200, h100, a100-80 or b200. Only h200 was measured."""
    node_gpus: int = 8
    """GPUs of a node, which their links join."""
    link_gbps: float | None = None
    """10^9 bytes a second from a GPU to the others of its node, in one direction. Left out: those of the GPU."""
    net_gbps: float = 50.0
    """10^9 bytes a second from a GPU to other nodes."""
    reach: float | None = None
    """Tokens of the document that a token is in, on average; attention costs less where they are few. Left out: as many
    as a row has."""
    best: int = 5
    """Meshes to show, the fastest of those that fit."""
    html: Path | None = None
    """File for a page that holds all of it; its folder is made."""
    json: bool = False
    """Print JSON instead of a report."""

    @property
    def mesh(self) -> MeshConfig:
        """The axes that were asked for."""
        return self.run.mesh


KEPT: Final = (
    *("weights", "data", "field", "tokenizer", "out", "save_to", "steps", "stop_after", "warmup", "packing", "max_bad"),
    *("workers", "mix", "eval", "shuffle", "virtual_shards", "seed", "save_every", "keep", "keep_every", "keep_best"),
    *("save_in_background", "max_skips", "timeout_s", "max_restarts", "leave_code", "profile", "balance"),
)
_IDLE: Final = "Changes nothing of a plan."
TOLD: Final = {
    request.Config: {
        **{name: _IDLE for name in KEPT if name not in ("packing", "mix", "eval", "balance")},
        "micro": "Rows of one forward and backward pass on one rank. Left out: as many as fit are looked for.",
        "explain": "Print which kernels would be used on that GPU, and why not others, too.",
    },
    request.TrackConfig: dict.fromkeys(("track", "track_project", "track_name"), _IDLE),
    **{kind: {field.name: _IDLE for field in fields(kind)} for kind in (ChatConfig, MediaConfig)},
}
"""What flags of apps/pretrain.py are here, where that is something else: all are taken, so that the command of a run is
that of its plan, also of chats, with media or without."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is planned."""

    asked: Config
    facts: ModelFacts
    sizes: Sizes
    stage: Stage
    cluster: Cluster
    spec: MeshSpec
    """The mesh that was asked for."""
    kernels: dict[str, tuple[str, ...]]
    """What would compute which part, in words."""
    chunked: bool
    wrong: tuple[str, ...]
    """Why the mesh that was asked for cannot be, while others may."""

    @property
    def rows(self) -> int:
        """Of a step, over all ranks."""
        return self.asked.run.batch or -(-12 // self.asked.gpus) * self.asked.gpus

    @property
    def left_out(self) -> str:
        """What a step of this model may do beside, and is not in the plan, in words; "" for nothing."""
        towers = len(self.facts.blocks) - len(self.sizes.blocks)
        return f"media: rows are of text, and the {towers} blocks of towers count as parameters alone" if towers else ""


def read_subject(asked: Config) -> Subject:
    """What `asked` is about. Effect: reads files, and the hub if asked to.

    Raises:
        ValueError: with everything that is wrong with it.
    """
    problems: list[str] = []
    gpu = attempt(problems, find_gpu, asked.gpu)
    run = asked.run
    attempt(problems, check_numbers, run)
    problems += _number_problems(asked)
    spec = attempt(problems, resolve_mesh, run.mesh, asked.gpus) if 1 <= asked.gpus <= MOST_GPUS else None
    read = attempt(problems, read_merged, run.model)
    model = attempt(problems, build_model, read, device="meta") if read else None
    facts = attempt(problems, describe, model) if model else None
    kernels: dict[str, tuple[str, ...]] = {}
    if model and facts and gpu:
        problems += unsupported(model)
        kernels = explain(model, device_type="cuda", dtype=torch.bfloat16, capability=gpu.capability)
        if run.linear == "fp8":
            problems += fp8_problems("cuda", gpu.capability, model, ParallelPlan(facts.blocks))
        problems += _choice_problems(run)
    refuse(problems)
    assert gpu and spec and model and facts
    cluster = Cluster(gpu, asked.node_gpus, asked.net_gbps * 1e9)
    if asked.link_gbps is not None:
        cluster = replace(cluster, gpu=replace(gpu, link=asked.link_gbps))
    sizes = measure_units(model, facts)
    wrong: list[str] = []
    attempt(wrong, cut_rows, replace(run, virtual_shards=None), {}, spec.dp)
    attempt(wrong, plan_parallel, facts, spec, sp_chunks=run.sp_chunks, tile=run.tile_mlp, recompute=run.recompute)
    chunked = (choose_loss(model) if run.loss == "auto" else run.loss) == "chunked"
    inside = f"{facts.decoder}." if facts.decoder else ""
    blocks = [name for name in facts.blocks if name.startswith(inside)]
    # Towers are neither run nor cut here: their parameters lie with what is in no block.
    own = tuple(unit for name, unit in zip(facts.blocks, sizes.blocks, strict=True) if name in set(blocks))
    beside = sum(map(sum, sizes.blocks)) - sum(map(sum, own))
    sizes = replace(sizes, blocks=own, rest=sizes.rest + beside)
    # A compiler fuses what our kernels do.
    names = fitting_kernels(model) if run.kernels == "auto" or run.compile else ()
    stage = set_stage(model, blocks, names)
    return Subject(asked, facts, sizes, stage, cluster, spec, kernels, chunked, tuple(wrong))


def _number_problems(asked: Config) -> list[str]:
    problems = []
    if not 1 <= asked.gpus <= MOST_GPUS:
        problems.append(f"--gpus {asked.gpus} must be at least 1 and at most {MOST_GPUS:,}.")
    if asked.node_gpus < 1 or asked.best < 1:
        problems.append(f"--node-gpus {asked.node_gpus} and --best {asked.best} must be at least 1.")
    if (asked.link_gbps is not None and not asked.link_gbps > 0) or not asked.net_gbps > 0:
        problems.append(f"--link-gbps {asked.link_gbps} and --net-gbps {asked.net_gbps} must be positive.")
    if asked.reach is not None and not 1 <= asked.reach <= asked.run.seq_len:
        problems.append(f"--reach {asked.reach:g} must be at least 1 and at most --seq-len {asked.run.seq_len}.")
    if asked.html and asked.html.is_dir():
        problems.append(f"--html {asked.html} is a folder: name a file in it, {asked.html / 'plan.html'} for example.")
    return problems


def _choice_problems(run: request.Config) -> list[str]:
    """What is asked for that nothing here knows the cost of."""
    problems = []
    if run.dtype == "float32":
        problems.append("--dtype float32: a plan is of runs in bfloat16, as GPUs train: leave it out.")
    if run.attention == "eager":
        problems.append("--attention eager holds all scores: a plan is of attention by kernels: leave it out.")
    return problems
