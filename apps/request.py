"""What a training run asks for, and what will happen: every decision, made before any process or weight is touched."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from preflight import attempt, refuse
from transformers import PreTrainedModel

from omni_ckpt import latest, mismatches, stored
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
    batch: int = 12
    """Rows of a step, over all ranks. The same batch gives the same numbers on any number of ranks."""
    micro: int | None = None
    """Rows of one forward and backward pass on one rank. Left out: all its rows of the step at once."""
    seq_len: int = 256
    """Tokens of a row. Documents are packed end to end and never see each other."""
    shuffle: bool = True
    """Read the documents of each epoch in another order."""
    virtual_shards: int = 240
    """Streams that the documents are dealt to. The number of ranks that read data must always divide it."""
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
    micro: int
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
    micro = attempt(problems, rows_of_microbatch, config, spec.dp) if spec else None
    warmup = config.steps // 10 if config.warmup is None else config.warmup
    peak = config.optim.lr
    schedule = attempt(problems, warmup_cosine, peak, warmup, config.steps, final=peak / 10)
    source = attempt(problems, open_source, config.data, field=config.field)
    own = "bytes" if config.model in PRESETS else config.model
    tokenizer = attempt(problems, read_tokenizer, config.tokenizer or own)
    model_config = attempt(problems, read_config, config.model)
    model = attempt(problems, build_model, model_config, device="meta") if model_config else None
    facts = describe(model) if model else None
    plan = attempt(problems, plan_parallel, facts, spec, recompute=config.recompute) if facts and spec else None
    if facts and tokenizer and tokenizer.vocab_size > facts.vocab_size:
        problems.append(
            f"tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens, but {config.model} has embeddings for "
            f"{facts.vocab_size}: choose the tokenizer that belongs to the model."
        )
    attempt(problems, check_optim, config.optim)
    found = latest(config.out)
    if model and config.weights and not found:
        attempt(problems, plan_weights, model, config.weights)
    if found and model:
        there = attempt(problems, stored, found, prefix="state.model")
        differing = [] if there is None else mismatches(named_tensors(model), there)
        problems += [f"{found} cannot be continued by {config.model}: {why}" for why in differing]
    refuse(problems)
    assert spec and micro and schedule and source and tokenizer and model and facts and plan
    return Decision(
        spec=spec,
        model=model,
        facts=facts,
        plan=plan,
        schedule=schedule,
        source=source,
        tokenizer=tokenizer,
        micro=micro,
        device=device,
        dtype=dtype,
        attention=choose_attention(model.config, device, dtype) if config.attention == "auto" else config.attention,
        loss=choose_loss(model.config) if config.loss == "auto" else config.loss,
        start=f"continues {found}" if found else config.weights or f"random weights of seed {config.seed}",
        found=found,
    )


def rows_of_microbatch(config: Config, dp: int) -> int:
    """Rows that one of `dp` ranks takes through the model at once. Pure.

    Raises:
        ValueError: if the rows of a step do not divide among ranks and microbatches, with everything that is wrong.
    """
    problems = [
        f"{name}={value} must be at least 1."
        for name, value in (
            ("batch", config.batch),
            ("seq_len", config.seq_len),
            ("steps", config.steps),
            ("save_every", config.save_every),
            ("keep", config.keep),
            ("stop_after", config.stop_after),
            ("virtual_shards", config.virtual_shards),
        )
        if value is not None and value < 1
    ]
    if config.batch % dp:
        problems.append(f"batch={config.batch} rows do not divide among {dp} ranks: use a multiple of {dp}.")
    elif config.micro is not None and (config.micro < 1 or (config.batch // dp) % config.micro):
        problems.append(
            f"micro={config.micro} does not divide the {config.batch // dp} rows of each rank in batch={config.batch}."
        )
    if config.virtual_shards >= 1 and config.virtual_shards % dp:
        up = -(-config.virtual_shards // dp) * dp
        problems.append(f"virtual_shards={config.virtual_shards} do not divide among {dp} ranks: use {up}.")
    if problems:
        raise ValueError("\n".join(problems))
    return config.micro or config.batch // dp
