"""How a run would go: its memory, its traffic and its pace on a mesh, and what is tried where flags leave it open."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Final

from compute import choose_gathered
from footprint import Footprint, How, trace_memory
from pace import Pace, predict_pace
from rehearse import Cut, rehearse
from subject import Subject
from torch import bfloat16
from traffic import Collective, group_of, list_traffic
from work import Rehearsal, between

from omni_mesh import MeshSpec
from omni_parallel import ParallelPlan, RecomputeConfig, plan_parallel
from omni_parallel.plan import list_offloaded

USABLE: Final = 0.94
"""How much of the memory of a GPU tensors can have: CUDA and NCCL take some, and some lies unused between tensors."""
_FEW: Final = 4096
_MANY: Final = 32768
"""Tokens of the two rehearsals between which others lie, where many meshes are looked at."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What may be chosen beside the mesh."""

    micro: int
    recompute: RecomputeConfig = RecomputeConfig()
    keep_gathered: bool = False
    offload: bool = False

    def flags(self, spec: MeshSpec) -> str:
        """As flags of apps/pretrain.py. Pure."""
        axes = [(axis, size) for axis, size in (*spec.base.items(), ("ep", spec.ep)) if size > 1]
        told = [*(f"--{axis} {size}" for axis, size in axes), f"--micro {self.micro}"]
        if self.recompute.every:
            told.append(f"--recompute.every {self.recompute.every}")
        if self.recompute.keep != "nothing":
            told.append(f"--recompute.keep {self.recompute.keep}")
        if self.recompute.matmuls:
            told.append(f"--recompute.matmuls {self.recompute.matmuls}")
        told.append(f"--keep-gathered {self.keep_gathered}")
        return " ".join([*told, *(["--offload"] if self.offload else [])])


@dataclass(frozen=True, slots=True)
class Outlook:
    """How a run goes."""

    spec: MeshSpec
    choice: Choice
    how: How
    footprint: Footprint
    pace: Pace
    rows: int
    seq_len: int
    room: float
    """Bytes that tensors can have."""

    @property
    def fits(self) -> bool:
        """Whether its memory is there."""
        return self.footprint.peak.total <= self.room

    @property
    def speed(self) -> float:
        """Tokens a second and GPU."""
        return self.rows * self.seq_len / self.pace.seconds / self.spec.world


@dataclass(slots=True)
class Theatre:
    """Where rehearsals of one model are held, each once."""

    subject: Subject
    seen: dict[Any, Rehearsal] = field(default_factory=dict)

    def rehearse(self, spec: MeshSpec, choice: Choice, tokens: int, *, exact: bool = True) -> Rehearsal:
        """What blocks do with so many tokens of a rank; if it need not be exact, on a line between two others."""
        if not exact and tokens > _FEW and not self.subject.asked.run.tile_mlp:
            key = ("between", spec.sp, spec.ep, choice.recompute, tokens)
            if key not in self.seen:
                few, many = (self.rehearse(spec, choice, n) for n in (_FEW, _MANY))
                self.seen[key] = between(few, many, tokens)
            return self.seen[key]
        every, keep = choice.recompute.every, choice.recompute.keep
        if every > 1 or choice.recompute.matmuls:
            blocks, names = self.subject.facts.blocks, self.subject.stage.names
            own = dict(zip(blocks, choice.recompute.of_blocks(len(blocks)), strict=True))
            hows = [own[name] for name in names]
            of_how = {how: self.rehearse(spec, replace(choice, recompute=how), tokens).blocks for how in {*hows}}
            return Rehearsal(tokens, tuple(of_how[how][i] for i, how in enumerate(hows)))
        key = (spec.sp, spec.ep, every, keep, tokens)
        if key not in self.seen:
            run = self.subject.asked.run
            cut = Cut(spec.sp, spec.ep, run.set_rows_aside, run.linear == "fp8")
            self.seen[key] = rehearse(self.subject.stage, plan_of(self.subject, spec, choice), tokens, cut)
        return self.seen[key]


def plan_of(subject: Subject, spec: MeshSpec, choice: Choice) -> ParallelPlan:
    """The plan of the run. Raises `ValueError` if it cannot work."""
    run = subject.asked.run
    how = {"recompute": choice.recompute, "offload": choice.offload, "keep_gathered": choice.keep_gathered}
    chunks = run.sp_chunks if spec.sp > 1 else 1
    return plan_parallel(subject.facts, spec, **how, sp_chunks=chunks, tile=run.tile_mlp, compile=run.compile)


def _away(subject: Subject, choice: Choice) -> frozenset[int]:
    """The blocks of the stage, by number, that hold in memory of the host what they keep."""
    away = list_offloaded(subject.facts.blocks, choice.recompute) if choice.offload else ()
    return frozenset(i for i, name in enumerate(subject.stage.names) if name in away)


def look_ahead(theatre: Theatre, spec: MeshSpec, choice: Choice, *, exact: bool = True) -> Outlook:
    """How the run goes on `spec` with `choice`.

    Args:
        theatre: where its blocks are rehearsed.
        spec: the mesh.
        choice: what else is chosen; its microbatches divide the rows of a rank.
        exact: whether they are rehearsed with just as many tokens.
    """
    subject = theatre.subject
    run, rows = subject.asked.run, subject.rows
    tokens = choice.micro * -(-run.seq_len // spec.sp)
    how = How(
        spec,
        tokens,
        passes=rows // spec.dp // choice.micro,
        recompute=choice.recompute.every > 0,
        keep_gathered=choice.keep_gathered,
        away=_away(subject, choice),
        moment_bytes=2 if run.optim.state_dtype == "bfloat16" else 4,
        moments_away=run.optim.offload,
        chunked=subject.chunked,
        one_host=group_of(spec, "fsdp", subject.cluster.node).nodes == 1,
    )
    seen = theatre.rehearse(spec, choice, tokens, exact=exact)
    memory = trace_memory(subject.facts, subject.sizes, seen, how)
    reach = float(run.seq_len) if subject.asked.reach is None else subject.asked.reach
    pace = predict_pace(subject.facts, subject.sizes, seen, how, subject.cluster, reach=reach)
    room = USABLE * subject.cluster.gpu.memory
    return Outlook(spec, choice, how, memory, pace, rows, run.seq_len, room)


def traffic_of(theatre: Theatre, outlook: Outlook) -> Counter[Collective]:
    """The collectives of a step, and how often each is."""
    subject = theatre.subject
    seen = theatre.rehearse(outlook.spec, outlook.choice, outlook.how.tokens)
    return list_traffic(subject.facts, subject.sizes, seen, outlook.how, subject.cluster.node)


def choice_asked(subject: Subject) -> Choice:
    """What the flags of the run say, or would lead to."""
    run, spec = subject.asked.run, subject.spec
    kept = choose_gathered(run, subject.facts, spec, "cuda", bfloat16)
    return Choice(run.micro or max(1, subject.rows // spec.dp), run.recompute, kept, run.offload)
