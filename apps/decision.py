"""What was decided of a run, as a value, and in words."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from compute import Compute
from lasting import estimate, look, tell_lasting
from redact import without_secrets
from transformers import PreTrainedModel

from omni_data import Packing, Part, TextTokenizer
from omni_data.mix import Weight
from omni_mesh import MeshSpec
from omni_models import ModelFacts, ModelPart
from omni_parallel import AdamWConfig, ParallelPlan, Schedule


@dataclass(frozen=True, slots=True)
class Decision:
    """What will happen, before anything does."""

    spec: MeshSpec
    model: PreTrainedModel
    facts: ModelFacts
    plan: ParallelPlan
    schedule: Schedule
    parts: tuple[Part, ...]
    held_out: tuple[Part, ...]
    """Whose loss is told, and not trained on."""
    tokenizer: TextTokenizer
    batch: int
    micro: int
    seq_len: int
    steps: int
    packing: Packing
    until: Literal["first", "all"]
    """Of its sources that end, which are read to their end."""
    workers: int
    """Processes of each rank that read."""
    virtual_shards: int
    order: dict[str, int | str | bool | None]
    """What fixes the rows of a step, beside the cursor; a checkpoint keeps it."""
    device: str
    dtype: torch.dtype
    compute: Compute
    """What computes it, by name."""
    balance: float
    """Weight of the balance loss."""
    rate: float
    """What a step moves the biases of routers by."""
    kernels: tuple[str, ...]
    keep: str
    """What recomputed blocks keep all the same."""
    moments: str
    """How narrow moments are, and where, in words; nothing if they are as wide as parameters, and with them."""
    trained: str
    """What is trained, in words; nothing if all is."""
    start: str
    """Where the weights come from, in words."""
    found: Path | None
    """The checkpoint to continue."""
    joining: str
    """Which sources join, leave and go on there, in words; nothing if they are the same."""
    frozen: tuple[ModelPart, ...] = ()
    """Parts of the model that are not trained."""
    replicated: tuple[str, ...] = ()
    """Modules that are whole on every rank."""

    @property
    def passes(self) -> int:
        """Microbatches of a step on each rank."""
        return self.batch // self.spec.dp // self.micro

    @property
    def ends(self) -> bool:
        """Whether the data may end before the last step."""
        return any(part.epochs is not None for part in self.parts)

    def told(self, found: Path | None = None, saves: str = "", changed: Sequence[str] = ()) -> str:
        """The decisions in words, a line each, with the checkpoint that was `found` whole, how others are saved, and
        which settings are not those of the run that it is of. Effect: reads some documents."""
        how = self.compute
        sizes = {axis: size for axis, size in self.spec.base.items() if size > 1}
        recomputed = len(self.plan.recompute)
        kept = len(self.plan.blocks) - recomputed
        chunks = self.plan.sp_chunks
        overlap = f", heads in {chunks} chunks that overlap" if chunks > 1 else ""
        more = len(self.plan.keep_matmuls)
        outputs = [f"of {self.keep}"] if self.plan.keep else []
        outputs += [f"of matrix products in {more} of them"] if more else []
        but = f", but for the outputs {' and '.join(outputs)}" if outputs else ""
        away = f", what {len(self.plan.offload)} keep in memory of the host" if self.plan.offload else ""
        tiled = len(self.plan.tiled)
        tiles = f", {tiled} feed-forward modules in tiles of {self.plan.tile} tokens" if tiled else ""
        again = self.plan.reshard_after_forward
        gathered = f"parameters {'gathered again' if again else 'there'} in the backward pass"
        state = f"; {self.moments}" if self.moments else ""
        blocks = f"{len(self.plan.blocks)} blocks"
        activations = f"activations of {kept} blocks kept, of {recomputed} recomputed{but}{away}{tiles}"
        linear = ", linear layers of blocks in fp8" if how.linear == "fp8" else ""
        compiled = len(self.plan.compile)
        linear += f", {compiled} blocks compiled" if compiled else ""
        apart = len(self.plan.uncompiled)
        inside = f"; those of the compiler in {compiled} blocks, but not in attention" if compiled else ""
        inside += f" and {apart} modules with experts or in tiles" if apart else ""
        lasts, ending = self._lasting()
        lines = (
            ("model", f"{self.facts.model_type}, {self.facts.num_params:,} parameters, {blocks}"),
            ("mesh", (" x ".join(f"{axis} {size}" for axis, size in sizes.items()) or "one rank") + overlap),
            ("data", f"{tell_sources(self.parts)}, tokenizer {self.tokenizer.name}"),
            *((("held out", tell_sources(self.held_out)),) if self.held_out else ()),
            ("step", f"{self.batch} rows, {self.micro} at a time on each rank{lasts}"),
            *((("rows", beyond),) if (beyond := self._beyond()) else ()),
            *ending,
            ("start", f"continues {found}" if found else self.start),
            *((("trained", self.trained),) if self.trained else ()),
            *((("sources", self.joining),) if found and self.joining else ()),
            *((("changed", ", ".join(changed)),) if changed else ()),
            *((("frozen", ", ".join(self.frozen)),) if self.frozen else ()),
            *((("whole", f"{', '.join(self.replicated)} on every rank"),) if self.replicated else ()),
            *((("saves", saves),) if saves else ()),
            ("compute", f"{self.dtype} on {self.device}, attention {how.attention}{linear}, loss {how.loss}"),
            *((("experts", self._experts()),) if self.facts.experts else ()),
            ("kernels", (", ".join(self.kernels) or "those of transformers") + inside),
            ("memory", f"{activations}; {gathered}{state}"),
        )
        return without_secrets("\n".join(f"{name:<10}{text}" for name, text in lines))

    def _lasting(self) -> tuple[str, list[tuple[str, str]]]:
        """How long the data last, for the line of the step, and lines of their own. Effect: reads some documents."""
        if len(self.parts) > 1 and not self.ends:
            return "", []
        looked = [look(part, self.packing, self.seq_len) for part in self.parts]
        how: Any = {"packing": self.packing, "until": self.until, "batch": self.batch, "seq_len": self.seq_len}
        choices = dict.fromkeys((self.virtual_shards, *(() if self.found else (self.batch, self.spec.dp))))
        return tell_lasting({n: estimate(self.parts, looked, shards=n, **how) for n in choices}, self.steps)

    def _beyond(self) -> str:
        """That rows have more tokens than the model has positions, in words."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if not isinstance(positions, int) or self.seq_len <= positions:
            return ""
        return f"{self.seq_len:,} tokens, and the model is made for {positions:,}: longer documents go beyond"

    def _experts(self) -> str:
        ep = self.spec.ep
        spread = f", spread over {ep} ranks, {self.facts.num_experts // ep} on each" if ep > 1 else ""
        evened = f", balance loss times {self.balance:g}" if self.balance else ""
        evened += f", biases moved by {self.rate:g}" if self.rate else ""
        how = f"{self.facts.experts_per_token} a token, {self.compute.experts}"
        return f"{self.facts.num_experts}, {how}{spread}{evened}"


def tell_sources(parts: Sequence[Part]) -> str:
    """What is read, in words; weights of several. Pure."""
    told = [f"{part.source.name}, {tell_length(part.source)}" for part in parts]
    if len(parts) == 1:
        return told[0]
    return "; ".join(f"{one}, weight {tell_weight(part.weight)}" for one, part in zip(told, parts, strict=True))


def tell_length(source: object) -> str:
    """How many documents a source has, in words. Pure."""
    if not isinstance(source, Sized):
        return "streamed"
    return "1 document" if len(source) == 1 else f"{len(source):,} documents"


def tell_moments(config: AdamWConfig) -> str:
    """How narrow moments are, and where, in words. Pure.

    >>> tell_moments(AdamWConfig()), tell_moments(AdamWConfig(state_dtype="bfloat16", offload=True))
    ('', 'moments in bfloat16, in memory of the host')
    """
    narrow = [f"in {config.state_dtype}"] if config.state_dtype != "float32" else []
    told = ", ".join([*narrow, *(["in memory of the host"] if config.offload else [])])
    return f"moments {told}" if told else ""


def tell_weight(weight: Weight) -> str:
    """A weight as people write it. Pure.

    >>> tell_weight(0.3), tell_weight(((0.0, 1.0), (5e9, 0.2)))
    ('0.3', '1@0,0.2@5e+09')
    """
    return ",".join(f"{one:g}@{at:g}" for at, one in weight) if isinstance(weight, tuple) else f"{weight:g}"
