"""What the flags of other trainers are called here."""

from collections.abc import Collection, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import tyro

ELSEWHERE: Final = {
    "batch": ("batch-size", "global-batch-size", "train-batch-size"),
    "micro": ("micro-batch-size", "per-device-train-batch-size", "per-device-batch-size"),
    "optim.lr": ("lr", "learning-rate"),
    "optim.weight-decay": ("weight-decay",),
    "optim.max-norm": ("max-grad-norm", "clip-grad", "gradient-clipping", "max-norm"),
    "steps": ("max-steps", "train-iters", "num-steps"),
    "mix.epochs": ("epochs", "num-epochs", "num-train-epochs"),
    "warmup": ("warmup-steps", "lr-warmup-iters"),
    "seq-len": ("max-seq-length", "max-seq-len", "max-length", "seq-length", "block-size"),
    "out": ("output-dir", "output", "save-dir", "log-dir"),
    "to": ("output-dir", "output", "out"),
    "save-every": ("save-steps", "save-interval", "checkpoint-interval"),
    "keep": ("save-total-limit",),
    "eval.every": ("eval-steps", "eval-interval"),
    "data": ("dataset", "dataset-name", "train-file", "data-path"),
    "model": ("model-name-or-path", "model-name", "model-path"),
    "tokenizer": ("tokenizer-name", "tokenizer-path"),
    "dtype": ("mixed-precision", "precision", "torch-dtype"),
    "shard": ("dp", "dp-size", "dp-shard", "data-parallel-shard-degree"),
    "replicate": ("dp-replicate", "data-parallel-replicate-degree"),
    "sp": ("ulysses", "ulysses-size", "sequence-parallel-size"),
    "ep": ("expert-parallel-size", "expert-model-parallel-size"),
    "tp": ("tensor-parallel-size", "tensor-model-parallel-size"),
    "packing.how": ("sample-packing",),
    "track": ("report-to",),
    "lora.rank": ("lora-r", "lora-dim"),
    "tokens": ("max-new-tokens", "max-tokens"),
}
"""Of each flag, without dashes, its names in other tools, where the same value means the same."""
MORE: Final = {"micro": " --batch is of all ranks and passes."}
"""What is said beside, of some."""
_RECOMPUTE: Final = {"recompute.every": "is --recompute.every 1 here."}
_RESUME: Final = {"out": "needs no flag here: the same command goes on from what is in --out."}
_ROWS: Final = {"out": "has none here: each step has its line, and its row in metrics.jsonl."}
_RANKS: Final = {
    "gpus": "is --gpus here, of all machines together.",
    "shard": "follows here: a rank on each GPU there is, or as many as --shard, --sp and the others multiply to.",
}
_MACHINES: Final = {
    "gpus": "is none here: --gpus are those of all machines together.",
    "shard": "is a flag of torchrun, which starts this script on several machines: see clusters/torchrun.sh.",
}
OTHERWISE: Final = {
    "bf16": {"dtype": "is --dtype bfloat16 here."},
    "fp16": {"dtype": "has none here: --dtype bfloat16 needs no scale of the loss."},
    "gradient-accumulation-steps": {"micro": "follows here, from --batch, the rows of a step, and --micro, of a pass."},
    "gradient-checkpointing": _RECOMPUTE,
    "activation-checkpointing": _RECOMPUTE,
    "resume-from-checkpoint": _RESUME,
    "resume": _RESUME,
    "logging-steps": _ROWS,
    "log-every": _ROWS,
    "num-train-samples": {"steps": "is --steps times --batch here."},
    "fsdp": {"shard": "is --shard here: how many ranks share the parameters."},
    "deepspeed": {"shard": "needs none here: --shard is how many ranks share the parameters, --config reads settings."},
    "gpus": _RANKS,
    "num-gpus": _RANKS,
    "num-processes": _RANKS,
    "world-size": _RANKS,
    "nproc-per-node": _RANKS,
    "nodes": _MACHINES,
    "nnodes": _MACHINES,
    "num-nodes": _MACHINES,
    "num-machines": _MACHINES,
}
"""Of flags of other tools that are none here, the flags that are near, without dashes, the nearest first, and what to
know where there is that one."""


def name_flags(words: Sequence[str], config_type: Any) -> list[str]:
    """What those of `words` are called here that are flags of other tools, and of `config_type` are none. Pure.

    >>> from request import Config
    >>> name_flags(["--learning-rate", "1e-5", "--sp", "2", "--max-new-tokens=3"], Config)
    ['--learning-rate is --optim.lr here.']
    """
    here = flag_names(config_type)
    asked = [word[2:].partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    told = (_name_flag(name, here) for name in dict.fromkeys(asked) if name not in here)
    return [f"--{name}" for name in told if name]


def _name_flag(name: str, here: Collection[str]) -> str:
    """What a flag of another tool is called in an app with those `here`, in words; empty if it is not known. Pure."""
    for flag, names in ELSEWHERE.items():
        if name in names and flag in here:
            return f"{name} is --{flag} here.{MORE.get(flag, '')}"
    nears = OTHERWISE.get(name, {})
    return next((f"{name} {told}" for near, told in nears.items() if near in here), "")


def flag_names(config_type: Any) -> set[str]:
    """The flags of a configuration, or of several of which one is chosen, without dashes; what is given by its place
    has none. Pure."""
    if not isinstance(config_type, type):
        return set[str]().union(*map(flag_names, get_args(config_type)))
    hints, found = get_type_hints(config_type, include_extras=True), set[str]()
    for field in fields(config_type):  # pyright: ignore[reportArgumentType]
        kind, *how = get_args(hint) if get_origin(hint := hints[field.name]) is Annotated else (hint,)
        if get_args(tyro.conf.Positional[Any])[1] in how:
            continue
        name = next((each.name for each in how if getattr(each, "name", None) is not None), field.name)
        name = name.replace("_", "-")
        below = flag_names(kind) if is_dataclass(kind) else ()  # pyright: ignore[reportArgumentType]
        found |= {f"{name}.{each}".removeprefix(".") for each in below} or {name}
    return found
