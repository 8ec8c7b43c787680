"""What a run says of itself: a line a step for people, and a JSON object a step for programs, whose names are those of
`measures` and docs/watching.md."""

import json
import math
import os
import resource
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from redact import without_secrets
from request import Config
from scales import clock

from omni_ckpt import latest, step_of
from omni_mesh import MeshConfig

Row = Mapping[str, Any]
ODD: Final = {"cut": "were cut", "dropped": "were dropped", "empty": "were empty", "bad": "could not be used"}
"""What becomes of documents that are not read as they are, in words."""
FULL: Final = 0.95
"""The share of positions that are no padding, below which it is told with each step."""


class HoldsRun(Protocol):
    """A configuration of which one part is that of a run."""

    @property
    def run(self) -> Config: ...


def progress_line(row: Row, steps: int, pace: float) -> str:
    """One step in words, aligned so that a column can be followed down the screen. Pure.

    Args:
        row: of `measures.tell_step`.
        steps: of the whole run.
        pace: seconds a step has taken on average, from which the time left is told.
    """
    step = int(row["step"])
    padded = f"fill {row['fill']:.0%}  " if row.get("fill", 1) < FULL else ""
    busiest = f"busiest expert {row['expert_load_max']:.1f}x  " if "expert_load_max" in row else ""
    return (
        f"step {step:>{len(str(steps))}}/{steps}  loss {row['loss']:7.4f}  norm {row['grad_norm']:7.3f}  "
        f"lr {row['lr']:.2e}  {row['tokens_per_second']:>10,.0f} tok/s  {row['memory_gb']:6.2f} GB  {padded}{busiest}"
        f"eta {clock((steps - step) * pace)}"
    )


def eval_line(row: Row, steps: int) -> str:
    """What is said of an evaluation. Pure.

    Args:
        row: `step`, `loss`, `targets`, and the loss of each source, as `loss/NAME`.
        steps: of the whole run.
    """
    each = "".join(f"  {name.removeprefix('loss/')} {row[name]:.4f}" for name in row if name.startswith("loss/"))
    step = int(row["step"])
    return f"eval {step:>{len(str(steps))}}/{steps}  loss {row['loss']:7.4f}  of {row['targets']:,} targets{each}"


def peak_memory_gb(device: torch.device) -> float:
    """The most memory (10^9 bytes) this rank has held: on its GPU, or in its process. Effect: asks the system."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    kibibyte = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kibibyte / 1e9


def find_lost(values: Mapping[str, float]) -> list[str]:
    """Which of `values` are not finite, in words. Pure."""
    return [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]


def odd_lines(step: int, before: Mapping[str, int], now: Mapping[str, int]) -> list[str]:
    """What is said in `step` of documents that were not read as they are, if none of their kind were before. Pure.

    >>> odd_lines(3, {"bad": 1}, {"bad": 2, "dropped": 5, "cut": 0})
    ['step 3 has documents that were dropped: 5. From here on metrics.jsonl counts them, as documents_dropped.']
    """
    return [
        f"step {step} has documents that {ODD[name]}: {count}. From here on metrics.jsonl counts them, "
        f"as documents_{name}."
        for name, count in now.items()
        if count and not before.get(name)
    ]


def skip_line(step: int, lost: Sequence[str], skips: int, most: int) -> str:
    """What is said of a step that changed nothing, the `skips`-th in a row. Pure."""
    return f"step {step} is SKIPPED: {' and '.join(lost)}. Nothing was changed ({skips} in a row; {most} stop the run)."


def check_skips(step: int, lost: Sequence[str], skips: int, config: Config, *, replay: str, cursor: Path) -> None:
    """Raises `FloatingPointError` if so many steps in a row, until `step`, changed nothing. Effect: reads, to say what
    there is to go on from."""
    if skips >= config.max_skips:
        newest = latest(config.checkpoints())
        doubt = ""
        if newest is not None and step_of(newest) >= step - skips:
            doubt = " No step since it was finite, so it may be what is wrong: delete it to go on from the one before."
        raise FloatingPointError(
            f"at step {step} {' and '.join(lost)}, and {skips} steps in a row were skipped, of --max-skips "
            f"{config.max_skips}. Nothing of them is saved: {what_stands(config)}.{doubt} Go on with a lower "
            f"--optim.lr, or look at the data, whose place is in {cursor}. To see the step again: {replay}"
        )


def what_stands(config: Config) -> str:
    """What the next run of `config` has to go on from, in words. Effect: looks for checkpoints."""
    newest = latest(config.checkpoints())
    return f"{newest} stands" if newest else "no checkpoint is complete yet, so the next run starts anew"


def what_interrupt_left(config: Config) -> str:
    """What there is of a run after Ctrl-C, and what to do the next time, in words. Effect: looks for checkpoints."""
    if newest := latest(config.checkpoints()):
        return f"{newest} stands: the same command goes on from it. kill -TERM saves before it leaves."
    return (
        "No checkpoint was complete yet: the same command starts anew. "
        f"kill -TERM saves before it leaves, and --save-every, now {config.save_every}, saves more often."
    )


def what_error_left(config: Config) -> str:
    """What there is of a run that an error ended, in words. Effect: looks for checkpoints."""
    more = f"--save-every, now {config.save_every}, saves more often."
    if newest := latest(config.checkpoints()):
        return f"{newest} stands: the next run goes on from it, and takes the steps since then again. {more}"
    return f"No checkpoint was complete yet: the next run starts anew. {more}"


def what_interrupt_left_of(asked: HoldsRun) -> str:
    """The same of an app whose configuration holds that of a run. Effect: as that."""
    return what_interrupt_left(asked.run)


def forget_rows(out: Path, step: int) -> None:
    """Make the rows in `out` end with `step`. Effect: as `forget_after`, for each file of rows; prints what it did."""
    for name in ("metrics.jsonl", "skipped.jsonl", "eval.jsonl"):
        if told := forget_after(out / name, step):
            say(told)


def forget_after(path: Path, step: int) -> str:
    """Drop the rows of `path` after `step`, which a resumed run is about to write again, and what a kill cut short.

    Of a run that starts anew, at step 0, the rows are those of another, which nobody writes again: they stay, in a file
    of another name. Effect: renames the file, or replaces it in one rename.

    Returns:
        What became of rows, in words; nothing if there were none.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    if lines and not step:
        names = (path.with_stem(f"{path.stem}-{n}") for n in count(1))
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        return f"{path} has rows of a run that left no checkpoint, and this one starts anew: they are kept in {aside}."
    kept = [line for line in lines if _is_until(line, step)]
    if len(kept) == len(lines):
        return ""
    part = path.with_suffix(".tmp")
    part.write_text("".join(f"{line}\n" for line in kept))
    part.rename(path)
    return f"{path} has rows after step {step}, {len(lines) - len(kept)} of them: they go, and are written again."


def say(*lines: str) -> None:
    """Print what a run tells of itself while it goes. Effect: writes to stdout, at once.

    Raises:
        ValueError: if whoever read it has left, as `head` does when it has enough.
    """
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError as problem:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would flush it once more at exit.
        raise ValueError(
            "what read the output of this run has ended, and so does the run. Send the output to a file, and read that."
        ) from problem


def append_row(path: Path, row: Row) -> None:
    """Add `row` to the JSON lines of `path`. Effect: writes; a kill of this process loses nothing of it.

    Raises:
        ValueError: if it cannot be written.
    """
    try:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as problem:
        raise ValueError(
            f"{path} cannot be written: {problem.strerror}. Make room, or get the right to write there."
        ) from problem


def what_next(config: Config, step: int, *, since: int, left: bool = False, app: str = "pretrain") -> str:
    """What to type after a run of `app` that stands at `step`; not the secrets of it. Pure.

    Args:
        config: of the run.
        step: where it stands.
        since: where it stood when it was started.
        left: it was asked to leave.
        app: that ran it.
    """
    out, steps = config.out, config.steps
    kept = f" --checkpoints {config.save_to}" if config.save_to else ""
    longer = f"the same command with --steps {2 * max(step, steps)}; the learning rate then falls over all of them"
    merged, whole = f"{out}/merged-{step}", " --lora merge" if config.lora.rank else ""
    idle = "" if step > since else "nothing was left to train: "
    if config.stop_after and config.stop_after <= step < steps:
        longer = f"the same command with a later --stop-after, or without: {config.stop_after} is reached"
    if step < min(steps, config.stop_after or steps):
        longer = (
            "the same command again" if left else f"the data are through: the same command with {more_data(config)}"
        )
    chat = {"sft": '--chat --prompt "Hello"', "omni": '--image FILE.png --prompt "What is it?"'}
    said = chat.get(app, '--prompt "The "')
    data, place = ("my.jsonl", "mine") if app == "pretrain" else ("chats.jsonl", f"my-{app}")
    own = f"uv run apps/{app}.py {like(config)}--data {data} --out runs/{place}"
    past = "" if step < steps else ", the last" if step == steps else f", past --steps {steps}"
    return without_secrets(
        "\n".join(
            (
                "",
                f"{idle}{out} stands at step {step}{past}. What next:",
                f"  go on      {longer}",
                f"  look       uv run apps/report.py {out}",
                f"  merge      uv run apps/merge.py {out}{kept} --to {merged}{whole}",
                f"  generate   uv run apps/infer.py {merged} {said}",
                *([f"  your data  {own}"] if config.data == Config().data else []),
            )
        )
    )


def more_data(config: Config) -> str:
    """The flags that let a run go on whose data ended. Pure.

    >>> from request import MixConfig
    >>> more_data(Config(data=("a", "b"), mix=MixConfig(epochs=(1, 0))))
    '--mix.epochs 2 0, or with --mix.until all'
    """
    more = f"--mix.epochs {' '.join(str(2 * count) for count in config.mix.epochs)}"
    some_left = config.mix.until == "first" and len(config.data) > 1
    return more + (", or with --mix.until all" if some_left else "")


def like(config: Config) -> str:
    """The flags that make another run one of the same model, on the same mesh, as they are typed, and a space. Pure."""
    mesh = {axis: size for axis, size in asdict(config.mesh).items() if size != getattr(MeshConfig(), axis)}
    kinds = {name: getattr(config, name) for name in ("model", "weights", "tokenizer", "seq_len")}
    own = {name: value for name, value in kinds.items() if value != getattr(Config(), name)}
    return "".join(f"--{name.replace('_', '-')} {shlex.quote(str(value))} " for name, value in (own | mesh).items())


def _is_until(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except json.JSONDecodeError:
        return False
