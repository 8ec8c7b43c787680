"""What a training run asks for, and what will happen: every decision, made before any process or weight is touched."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from preflight import attempt, refuse
from transformers import PreTrainedModel

from omni_ckpt import latest, mismatches, read_plain, stored
from omni_data import Source, TextTokenizer, open_source, read_tokenizer
from omni_mesh import MeshConfig, MeshSpec, resolve_mesh
from omni_models import (
    PRESETS,
    ModelFacts,
    build_model,
    choose_attention,
    choose_loss,
    describe,
    plan_weights,
    read_config,
)
from omni_parallel import (
    AdamWConfig,
    ParallelPlan,
    RecomputeConfig,
    Schedule,
    check_optim,
    named_tensors,
    plan_parallel,
    warmup_cosine,
)


@dataclass(frozen=True, slots=True)
class Config:
    """One run: everything that changes its numbers."""

    model: str = "tiny"
    """Architecture: a preset (tiny, qwen3-8b, llama-3.1-8b, ...), a directory with a config.json, or a hub name."""
    weights: str | None = None
    """Directory or hub name of safetensors to start from. Left out: random weights."""
    data: str = "builtin"
    """A .jsonl, .parquet or .txt file, a folder or pattern of them, hf:NAME for a dataset of the hub, or builtin."""
    field: str = "text"
    """The field of a record that holds its document."""
    tokenizer: str | None = None
    """A directory with a tokenizer.json, a hub name, or bytes. Left out: the model's own, and bytes for a preset."""
    out: Path = Path("runs/pretrain")
    """Directory of the run: checkpoints, metrics.jsonl, and what the merged model will need."""
    steps: int = 200
    """Optimizer steps of the whole run."""
    stop_after: int | None = None
    """Save and leave after this step, as if the run were interrupted; start it again to go on."""
    warmup: int | None = None
    """Steps over which the learning rate rises; then it falls as a cosine to a tenth. Left out: a tenth of them."""
    batch: int | None = None
    """Rows of a step, over all ranks; the same batch gives the same numbers on any number of them. Left out: that of
    the checkpoint, or 12, or as many more as the ranks need to share them evenly."""
    micro: int | None = None
    """Rows of one forward and backward pass on one rank. Left out: all its rows of the step at once."""
    seq_len: int = 256
    """Tokens of a row. Documents are packed end to end and never see each other."""
    shuffle: bool = True
    """Read the documents of each epoch in another order."""
    virtual_shards: int | None = None
    """Streams that the documents are dealt to; the number of ranks that read data must always divide it. Left out:
    that of the checkpoint, or 240, or the next number that these ranks divide as well."""
    seed: int = 0
    """Of random weights, the order of documents, and dropout."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of compute; the master weights, gradients and moments are float32. auto: bfloat16 on GPUs, float32 on CPUs."""
    attention: Literal["auto", "eager", "sdpa", "varlen"] = "auto"
    """Attention backend. auto: the fastest that is exact for this model on this device."""
    loss: Literal["auto", "chunked", "full"] = "auto"
    """Cross entropy without ever holding all logits, or with. auto: chunked wherever the model allows it."""
    save_every: int = 100
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Checkpoints to keep, newest first."""
    mesh: Annotated[MeshConfig, tyro.conf.arg(name="")] = MeshConfig()
    recompute: RecomputeConfig = RecomputeConfig()
    optim: AdamWConfig = AdamWConfig()


@dataclass(frozen=True, slots=True)
class Decision:
    """What will happen, before anything does."""

    spec: MeshSpec
    model: PreTrainedModel
    facts: ModelFacts
    plan: ParallelPlan
    schedule: Schedule
    source: Source
    tokenizer: TextTokenizer
    batch: int
    micro: int
    virtual_shards: int
    order: dict[str, int | bool | None]
    """What fixes the rows of a step, beside the cursor; a checkpoint keeps it."""
    device: str
    dtype: torch.dtype
    attention: str
    loss: Literal["chunked", "full"]
    start: str
    """Where the weights come from, in words."""
    found: Path | None
    """The checkpoint to continue."""

    def told(self) -> str:
        """The decisions in words, a line each."""
        sizes = {axis: size for axis, size in self.spec.base.items() if size > 1}
        kept = len(self.plan.blocks) - len(self.plan.recompute)
        return "\n".join(
            f"{name:<10}{text}"
            for name, text in (
                (
                    "model",
                    f"{self.facts.model_type}, {self.facts.num_params:,} parameters, {len(self.plan.blocks)} blocks",
                ),
                ("mesh", " x ".join(f"{axis} {size}" for axis, size in sizes.items()) or "one rank"),
                ("data", f"{self.source.name}, {len(self.source):,} documents, tokenizer {self.tokenizer.name}"),
                ("step", f"{self.batch} rows, {self.micro} at a time on each rank"),
                ("start", self.start),
                ("compute", f"{self.dtype} on {self.device}, attention {self.attention}, loss {self.loss}"),
                ("memory", f"activations of {kept} blocks kept, of {len(self.plan.recompute)} recomputed"),
            )
        )


def decide(config: Config, ranks: int) -> Decision:
    """What `config` means on `ranks` ranks of machines like this one. Effect: reads files, and the hub if asked to.

    Raises:
        ValueError: with everything that keeps the run from starting.
    """
    problems: list[str] = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    auto = torch.bfloat16 if device == "cuda" else torch.float32
    dtype = auto if config.dtype == "auto" else getattr(torch, config.dtype)
    spec = attempt(problems, resolve_mesh, config.mesh, ranks)
    warmup = config.steps // 10 if config.warmup is None else config.warmup
    peak = config.optim.lr
    schedule = attempt(problems, warmup_cosine, peak, warmup, config.steps, final=peak / 10)
    attempt(problems, check_optim, config.optim)
    attempt(problems, check_counts, config)
    source = attempt(problems, open_source, config.data, field=config.field)
    model_config = attempt(problems, read_config, config.model)
    model = attempt(problems, build_model, model_config, device="meta") if model_config else None
    facts = describe(model) if model else None
    plan = attempt(problems, plan_parallel, facts, spec, recompute=config.recompute) if facts and spec else None
    own = "bytes" if config.model in PRESETS else config.model if model else None
    name = config.tokenizer or own
    tokenizer = attempt(problems, read_tokenizer, name) if name else None
    if facts and tokenizer and tokenizer.vocab_size > facts.vocab_size:
        problems.append(
            f"tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens, but {config.model} has embeddings for "
            f"{facts.vocab_size}: choose the tokenizer that belongs to the model."
        )
    found = latest(config.out)
    if model and config.weights and not found:
        attempt(problems, plan_weights, model, config.weights)
    if found and model:
        there = attempt(problems, stored, found, prefix="state.model")
        differing = [] if there is None else mismatches(named_tensors(model), there)
        problems += [f"{found} cannot be continued by {config.model}: {why}" for why in differing]
    kept: dict[str, Any] = (attempt(problems, read_plain, found) or {}).get("order", {}) if found else {}
    asked = {
        "documents": len(source) if source else None,
        "tokens": tokenizer.vocab_size if tokenizer else None,
        "shuffle": config.shuffle,
        "seed": config.seed,
    }
    problems += [
        f"{found} stands at a place among data of {fact}={kept[fact]}, which means nothing at {fact}={value}: "
        "give it the same data, tokenizer and seed, or choose another --out."
        for fact, value in asked.items()
        if value is not None and kept.get(fact, value) != value
    ]
    rows = attempt(problems, cut_rows, config, kept, spec.dp) if spec else None
    refuse(problems)
    assert spec and rows and schedule and source and tokenizer and model and facts and plan
    batch, micro, virtual_shards = rows
    return Decision(
        spec=spec,
        model=model,
        facts=facts,
        plan=plan,
        schedule=schedule,
        source=source,
        tokenizer=tokenizer,
        batch=batch,
        micro=micro,
        virtual_shards=virtual_shards,
        order={**asked, "batch": batch, "virtual_shards": virtual_shards},
        device=device,
        dtype=dtype,
        attention=choose_attention(model.config, device, dtype) if config.attention == "auto" else config.attention,
        loss=choose_loss(model.config) if config.loss == "auto" else config.loss,
        start=f"continues {found}" if found else config.weights or f"random weights of seed {config.seed}",
        found=found,
    )


def check_counts(config: Config) -> None:
    """Raises `ValueError` if something that is counted is below 1, with all of it. Pure."""
    counts = {name: getattr(config, name) for name in ("seq_len", "steps", "stop_after", "save_every", "keep")}
    if problems := [f"{name}={n} must be at least 1." for name, n in counts.items() if n is not None and n < 1]:
        raise ValueError("\n".join(problems))


def cut_rows(config: Config, kept: Mapping[str, int], dp: int) -> tuple[int, int, int]:
    """Rows of a step, rows of a microbatch of one of `dp` ranks, and virtual shards. Pure.

    Args:
        config: what was asked for.
        kept: what the checkpoint to continue has of these, if there is one.
        dp: ranks that read different rows.

    Raises:
        ValueError: if they do not divide, with everything that is wrong.
    """
    batch = kept.get("batch", -(-12 // dp) * dp) if config.batch is None else config.batch
    shards = kept.get("virtual_shards", lcm(240, dp)) if config.virtual_shards is None else config.virtual_shards
    micro = batch // dp if config.micro is None else config.micro
    problems = [
        f"{name}={value} must be at least 1."
        for name, value in (("batch", batch), ("micro", micro), ("virtual_shards", shards))
        if value < 1
    ]
    if batch % dp:
        problems.append(f"batch={batch} rows do not divide among {dp} ranks: use a multiple of {dp}.")
    elif micro > 0 and (batch // dp) % micro:
        problems.append(f"micro={micro} does not divide the {batch // dp} rows of each rank in batch={batch}.")
    if shards % dp:
        problems.append(f"virtual_shards={shards} do not divide among {dp} ranks: use {-(-shards // dp) * dp}.")
    if shards != kept.get("virtual_shards", shards):
        problems.append(f"virtual_shards={shards}, but the checkpoint has {kept['virtual_shards']}: leave it out.")
    if problems:
        raise ValueError("\n".join(problems))
    return batch, micro, shards
