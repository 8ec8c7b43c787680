"""What a checkpoint says of the run that wrote it, for people and programs: JSON with a version."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from decision import Decision
from flags import as_word
from limits import flat_values
from redact import plain_values
from request import Config

VERSION: Final = 1
"""Of what `tell_about` gives. A reader of this version reads all before it."""


def tell_about(
    config: Config, run: Decision, *, tokens: int, metrics: Mapping[str, float], best: Any
) -> dict[str, Any]:
    """What is stored under `about`. Pure.

    Args:
        config: what was asked for; secrets in it are left out.
        run: what was decided.
        tokens: seen by the run.
        metrics: of the last step.
        best: the least loss of the run and its step.
    """
    return {
        "version": VERSION,
        "tokens": tokens,
        "metrics": dict(metrics),
        "best": best,
        "schedule": {"peak": config.optim.lr, "steps": config.steps, "warmup": config.warmup},
        # Every step seeds the generators of torch, CUDA, numpy and Python from these three: see `seed_all_`.
        "random": {"seed": config.seed, "key": ["seed", "step", "rank"]},
        "mesh": dict(run.spec.base),
        "config": plain_values(asdict(config)),
        "settled": settle(config, run),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def settle(config: Config, run: Decision) -> dict[str, Any]:
    """Settings that may be left open, as they were decided. Pure."""
    dtype = str(run.dtype).removeprefix("torch.")
    return {"batch": run.batch, "warmup": config.warmup_steps(), "dtype": dtype}


_FREE: Final = (
    *("out", "save_to", "stop_after", "save_every", "keep", "keep_every", "keep_best", "save_in_background"),
    *("timeout_s", "max_restarts", "max_skips", "mesh", "micro", "sp_chunks", "keep_gathered", "offload"),
    *("leave_code", "profile", "tile_mlp", "explain", "tracking"),
    *("set_rows_aside", "recompute", "virtual_shards", "data", "weights", "tokenizer", "workers", "max_bad"),
    *("mix.changed", "eval", "optim.offload"),
)
"""Settings that change no numbers but by rounding, or that `decide` refuses to change."""


def changed_settings(about: Mapping[str, Any], config: Config, settled: Mapping[str, Any]) -> list[str]:
    """Settings that change numbers and are not those of the run that wrote `about`, in words. Pure.

    A checkpoint has parameters and moments. Everything else, down to learning rate, betas and weight decay, is what the
    command line says now.

    Args:
        about: of a checkpoint.
        config: what is asked for now.
        settled: what is decided where it is left open; compared if `about` has it, too.
    """
    known = about.get("settled", {})
    before = flat_values(about.get("config", {})) | known
    now = flat_values(plain_values(asdict(config))) | {name: settled[name] for name in settled if name in known}
    # In 8 bits a scale is that of what is computed together.
    free = {*_FREE} - ({"micro", "mesh", "tile_mlp"} if config.linear == "fp8" else set())
    return [
        f"--{name.removeprefix('mesh.').replace('_', '-')} {as_word(before[name])} -> {as_word(value)}"
        for name, value in now.items()
        if not {name, name.split(".")[0]} & free and name in before and before[name] != value
    ]


def check_about(about: Mapping[str, Any], path: Path) -> None:
    """Raises `ValueError` if `about`, of checkpoint `path`, has a version that is not read here. Pure."""
    if about.get("version", VERSION) not in range(1, VERSION + 1):
        raise ValueError(
            f"{path} was written by a newer version of this app (about {about['version']}, here {VERSION})."
        )
