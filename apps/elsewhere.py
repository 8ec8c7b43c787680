"""What the flags of other trainers are called here."""

from collections.abc import Sequence
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
    "shard": ("dp-shard", "data-parallel-shard-degree"),
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
OTHERWISE: Final = {
    "bf16": ("dtype", "is --dtype bfloat16 here."),
    "fp16": ("dtype", "has none here: --dtype bfloat16 needs no scale of the loss."),
    "gradient-accumulation-steps": ("micro", "follows here, from --batch, the rows of a step, and --micro, of a pass."),
    **dict.fromkeys(
        ("gradient-checkpointing", "activation-checkpointing"), ("recompute.every", "is --recompute.every 1 here.")
    ),
    **dict.fromkeys(
        ("resume-from-checkpoint", "resume"),
        ("out", "needs no flag here: the same command goes on from what is in --out."),
    ),
    **dict.fromkeys(
        ("logging-steps", "log-every"),
        ("out", "has none here: each step has its line, and its row in metrics.jsonl."),
    ),
    "num-train-samples": ("steps", "is --steps times --batch here."),
    "fsdp": ("shard", "is --shard here: how many ranks share the parameters."),
    "deepspeed": ("shard", "needs none here: --shard is how many ranks share the parameters, --config reads settings."),
}
"""Of flags of other tools that are none here, the flag that is near, without dashes, and what to know."""


def name_flags(words: Sequence[str], config_type: type[object]) -> list[str]:
    """What those of `words` are called here that are flags of other tools, and of `config_type` are none. Pure.

    >>> from request import Config
    >>> name_flags(["--learning-rate", "1e-5", "--sp", "2", "--max-new-tokens=3"], Config)
    ['--learning-rate is --optim.lr here.']
    """
    here = flag_names(config_type)
    asked = [word[2:].partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    others = [name for name in dict.fromkeys(asked) if name not in here]
    told = [
        f"--{name} is --{flag} here.{MORE.get(flag, '')}"
        for name in others
        for flag, names in ELSEWHERE.items()
        if name in names and flag in here
    ]
    nears = [(name, *OTHERWISE.get(name, ("", ""))) for name in others]
    return told + [f"--{name} {sentence}" for name, near, sentence in nears if near in here]


def flag_names(config_type: type[object]) -> set[str]:
    """The flags of a configuration, without dashes; what is given by its place has none. Pure."""
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
