"""What a training run asks for: its command line, as a value."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from omni_ckpt import as_place
from omni_data import Packing
from omni_mesh import MeshConfig
from omni_models import BalanceConfig, LoraSettings
from omni_parallel import AdamWConfig, RecomputeConfig

if TYPE_CHECKING:
    from omni_ckpt import Retention


@dataclass(frozen=True, slots=True)
class MixConfig:
    """How the sources of --data are mixed."""

    weights: tuple[str, ...] = ()
    """Of each source: its share of the rows (of the tokens, where rows are full), or a schedule of shares, linear
    between points of weight@tokens of the whole run: 1@0,0.2@5e9. Left out: the same for all."""
    epochs: tuple[int, ...] = ()
    """How often each source is read at most; 0 is without end. Left out: without end."""
    until: Literal["first", "all"] = "first"
    """With limits on epochs: end when the first source is through, or go on with the others until all are."""
    changed: bool = False
    """Go on from a checkpoint with other sources; those that it knows go on where they stand."""


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """Documents that are not trained on, whose loss is told while a run goes on."""

    data: tuple[str, ...] = ()
    """Sources, each as of --data; the loss of each is told. Left out: nothing is evaluated."""
    every: int = 100
    """Steps between evaluations; after the last step there always is one."""
    documents: int | None = None
    """Of each source, so many from its start. Left out: all of them."""


@dataclass(frozen=True, slots=True)
class TrackConfig:
    """Where the rows of a run go beside metrics.jsonl and eval.jsonl."""

    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Services that are told what metrics.jsonl and eval.jsonl are; each has to be installed, as the extra of its name.
    Left out: none."""
    track_project: str = "omni"
    """Project of the run, where a service has projects."""
    track_name: str | None = None
    """Name of the run. Left out: the last word of --out."""


@dataclass(frozen=True, slots=True)
class Config:
    """One run: everything that changes its numbers."""

    model: str = "tiny"
    """Architecture: a preset (tiny, qwen3-8b, llama-3.1-8b, ...), a directory with a config.json, or a hub name."""
    weights: str | None = None
    """Directory or hub name of safetensors to start from. Left out: random weights."""
    data: tuple[str, ...] = ("builtin",)
    """A .jsonl, .parquet, .arrow, .tar or .txt file (a document a line), compressed too, a folder or pattern of them,
    a URL, hf:NAME for a dataset of the hub, or builtin. Several are mixed: see --mix. After stream:, as in
    stream:s3://bucket/web, it is read where it is and in order, shuffled only nearby, and never copied or counted."""
    field: str = "text"
    """The field of a record that holds its document."""
    tokenizer: str | None = None
    """A directory with a tokenizer.json, a hub name, or bytes. Left out: the model's own, and bytes for a preset."""
    out: Path = Path("runs/pretrain")
    """Directory of the run: checkpoints, metrics.jsonl, and what the merged model will need."""
    save_to: str | None = None
    """Where checkpoints go: a directory, or a URL of object storage, s3://bucket/run for example (s3fs must be
    installed). Left out: --out, where everything else is."""
    steps: int = 200
    """Optimizer steps of the whole run; the learning rate falls over all of them."""
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
    """Tokens of a row. Its documents never see each other."""
    packing: Packing = Packing()
    max_bad: int = 0
    """Documents that cannot be used and are left out, on each rank since it was started; one more ends the run."""
    workers: int | None = None
    """Processes of each rank that read, tokenize and pack; with 0 a thread does, which costs a GPU time that the host
    needs to keep it busy. Left out: 2 on GPUs, none on CPUs."""
    mix: MixConfig = MixConfig()
    eval: EvalConfig = EvalConfig()
    shuffle: bool = True
    """Read the documents of each epoch in another order."""
    virtual_shards: int | None = None
    """Streams that the documents are dealt to; the number of ranks that read data must always divide it. Left out:
    that of the checkpoint, or 240, or the next number that these ranks divide as well."""
    seed: int = 0
    """Of random weights, the order of documents, and dropout."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of compute; the master weights and gradients are float32, moments as --optim.state-dtype says. auto: bfloat16 on
    GPUs, float32 on CPUs."""
    attention: Literal["auto", "eager", "sdpa", "cudnn", "flex", "varlen", "fa4"] = "auto"
    """Attention backend. auto: the fastest that is exact for this model on this device."""
    experts: Literal["auto", "grouped", "eager"] = "auto"
    """How experts are computed: by grouped matrix products over rows sorted by expert, or by the model's own loop over
    experts. auto: grouped wherever the model and the widths of its experts allow it."""
    kernels: Literal["auto", "none"] = "auto"
    """Fused kernels for norms, gated activations and rotary positions. auto: where they are proven to fit this model,
    on GPUs."""
    linear: Literal["plain", "fp8"] = "plain"
    """How linear layers of blocks are computed. fp8: their matrix products in 8-bit floats, each tensor scaled by its
    largest magnitude, on GPUs from Ada and Hopper on; faster where layers are wide, and the loss is that of plain but
    for noise. Head, embeddings, routers and the experts that they choose stay as they are, and so do the
    master weights."""
    compile: bool = False
    """Compile blocks by torch.compile, up to attention and experts, which stay as they are; kernels between are then
    the compiler's. The first steps take a minute or more. Not with --offload, --linear fp8, or what
    recomputed blocks keep."""
    loss: Literal["auto", "chunked", "full"] = "auto"
    """Cross entropy without ever holding all logits, or with. auto: chunked wherever the model allows it."""
    save_every: int = 100
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Checkpoints to keep, newest first. One with a file PINNED in it is never deleted."""
    keep_every: int | None = None
    """Keep the checkpoints of every so-many-th step, too."""
    keep_best: int = 0
    """Keep so many of those with the least loss, too: of what is held out, if it was evaluated at their step; of the
    step, if nothing is."""
    save_in_background: bool | None = None
    """Write checkpoints while training goes on, from a copy in host memory. Left out: where the copies of all ranks of
    this machine take less than half of the memory that is free."""
    max_skips: int = 3
    """A step whose loss or gradient is not finite changes nothing; after so many in a row the run stops."""
    timeout_s: float = 600.0
    """Seconds that a step may take, after the first, before all ranks tell where they stand, and which is to blame, and
    end."""
    max_restarts: int = 0
    """If a rank fails, start all of them again, so often; they go on from the newest checkpoint. Refused where another
    starts the ranks: under torchrun, which has a flag of this name, and under srun."""
    leave_code: int = 0
    """Code to exit with after leaving on SIGTERM before the last step, for those who start again what did not end
    with 0."""
    profile: tuple[int, ...] = ()
    """The first and the last step to profile, or one: where time and memory of the first rank go is printed, and kept
    in profile/ below --out. Such a step, and the next, are slower; their numbers are the same. What is saved or
    evaluated after a step is seen as well."""
    tracking: Annotated[TrackConfig, tyro.conf.arg(name="")] = TrackConfig()
    mesh: Annotated[MeshConfig, tyro.conf.arg(name="")] = MeshConfig()
    sp_chunks: int = 1
    """With --sp: parts into which a rank's heads are cut, so that their all-to-alls run under attention."""
    keep_gathered: bool | None = None
    """Keep the parameters of blocks gathered from the forward pass to the backward pass. Left out: on GPUs where all
    that is gathered of blocks takes less than 2 GiB."""
    set_rows_aside: bool = True
    """With --ep 2: set memory for activations of experts aside for every choice of every token, twice what they take on
    average, so that the host never waits to learn how many there are."""
    recompute: RecomputeConfig = RecomputeConfig()
    offload: bool = False
    """Hold what blocks keep for the backward pass in pinned memory of the host. Copies run while other blocks compute.
    Pinned for each rank is what its blocks keep, but for those of --recompute.matmuls, which stay."""
    tile_mlp: int = 0
    """Tokens of a rank that feed-forward modules take at a time, each computed again in the backward pass; 0: all at
    once. What is inside such a module then exists for one tile at a time, which long rows need."""
    balance: BalanceConfig = BalanceConfig()
    optim: AdamWConfig = AdamWConfig()
    lora: LoraSettings = LoraSettings()
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained: regular expressions for a part of their names, such as visual or
    layers.[0-3][.]. Checkpoints hold them all the same."""
    explain: bool = False
    """Print what was decided, which kernel would be used where and why not another, and leave; needs no GPU."""

    def checkpoints(self) -> Path:
        """The place of the checkpoints.

        Raises:
            ValueError: if it is a URL, and what reads URLs is not installed.
        """
        return as_place(self.save_to or self.out)

    def keeps_frozen(self) -> bool:
        """Whether checkpoints hold what is not trained; beside adapters it is read again from where it came."""
        return not self.lora.rank

    def filled_from(self, found: Path | None) -> str | None:
        """The weights that a run is filled with, before it goes on from the checkpoint `found`, if there is one."""
        return None if found and self.keeps_frozen() else self.weights

    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        return self.steps // 10 if self.warmup is None else self.warmup

    def retention(self) -> "Retention":
        """Which checkpoints stay."""
        from omni_ckpt import Retention  # Which needs torch, and flags do not.

        loss = "eval_loss" if self.eval.data else "loss"
        return Retention(self.keep, self.keep_every, self.keep_best, metric=f"about.metrics.{loss}")
