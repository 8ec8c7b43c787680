"""Turn a checkpoint into a directory that plain transformers loads.

    uv run apps/merge.py runs/pretrain --to runs/pretrain/merged
    uv run apps/merge.py runs/pretrain --to merged --step 100 --dtype bfloat16
    uv run apps/merge.py runs/lora --to adapters             of a run of adapters, these, which plain peft loads
    uv run apps/merge.py runs/lora --to merged --lora merge  or the model that they make of the one they are beside

The run is left as it is.
"""

from preflight import check_flags, run
from request_merge import Config

if __name__ == "__main__":
    check_flags(Config, __doc__)  # What is wrong with them is told before torch is there.

import json
import shutil
from pathlib import Path
from shlex import quote
from tempfile import TemporaryFile

import torch
from adapters import ADAPTERS, export_adapters, merge_base
from names import nearest
from places import URL
from redact import without_secrets

from omni_ckpt import as_place, latest, merge_to_hf, step_dir, step_of, steps
from omni_models import build_model, hf_keys, read_config


def main(config: Config) -> None:
    """Write `config.to`. Effect: reads a checkpoint, writes safetensors, configuration and tokenizer.

    Raises:
        ValueError: if the run, the checkpoint or the model is not one that can be merged.
    """
    assets = config.run / "model"
    if not (assets / "config.json").is_file():
        raise ValueError(f"{config.run} is not the directory of a run: {what_instead(config.run)}")
    root = as_place(config.checkpoints or config.run)
    source = choose(root, config.step)
    check_free(config.to)
    adapted = (assets / ADAPTERS).is_file()
    if not adapted and (config.lora == "merge" or config.base):
        raise ValueError(f"{config.run} has no adapters, but is a model by itself: leave out --lora and --base.")
    others = [str(step_of(path)) for path in steps(root) if path.name != source.name]
    another = f"--step chooses another: {', '.join(others)}" if others else ""
    more = f" ({another})" if another and config.step is None else ""
    dtype = getattr(torch, config.dtype) if config.dtype else None
    try:
        if adapted and config.lora == "keep":
            base = export_adapters(source, assets, config.to, dtype)
            told = f"{source}{more} gave the adapters {config.to}, which plain peft loads beside {base}."
            print(without_secrets(told))
            return
        if adapted:
            merge_base(source, assets, config.to, dtype, base=config.base)
        else:
            to_hf = hf_keys(build_model(read_config(str(assets)), device="meta"))
            merge_to_hf(source, config.to, to_hf=to_hf, dtype=dtype)
    except ValueError as problem:
        raise ValueError(f"{problem}\n{another}".rstrip()) from problem
    add_assets(assets, config.to, config.dtype)
    said = how_to_ask(config.to)
    print(without_secrets(f"{source}{more} is merged. Try: uv run apps/infer.py {config.to} {said}"))


def what_instead(run: Path) -> str:
    """What `run` is, which no run is, and what to give instead, in words. Effect: looks at the disk."""
    if not run.exists():
        return f"there is no {run}{nearest(run)}."
    if run.is_file():
        return "it is a file."
    whole = run.resolve().parent
    name = f"Name the run: uv run apps/merge.py {quote(str(whole))}"
    if (whole / "model" / "config.json").is_file() and run.resolve() in [Path(path) for path in steps(whole)]:
        return f"it is a checkpoint of one. {name} --step {step_of(run.resolve())} --to DIR"
    if run.resolve() == whole / "model" and (run / "config.json").is_file():
        return f"it is what one keeps beside its checkpoints, without weights. {name} --to DIR"
    if any(run.glob("*.safetensors")):
        return "it is a model already, which needs no merging."
    return "it has no model/config.json."


def how_to_ask(model: Path) -> str:
    """The flags of apps/infer.py that suit a merged model. Effect: looks at its files."""
    if any(model.glob("*.npz")):
        return '--prompt "Draw a red circle" --draw drawn.png'
    if (model / "processor_config.json").is_file():
        return '--image FILE.png --prompt "What is it?"'
    return '--chat --prompt "Hello"' if (model / "chat_template.jinja").is_file() else '--prompt "The "'


def add_assets(assets: Path, to: Path, dtype: str | None) -> None:
    """Put what is in `assets` beside the weights in `to`, and say that these are of `dtype`. Effect: writes.

    The configuration, without which nothing loads the directory, comes last and whole.
    """
    for file in assets.iterdir():
        if file.name not in ("config.json", ADAPTERS):
            shutil.copy(file, to)
    shutil.copy(assets / "config.json", part := to / "config.json.tmp")
    if dtype:
        part.write_text(json.dumps(json.loads(part.read_text()) | {"dtype": dtype}, indent=2) + "\n")
    part.rename(to / "config.json")


def choose(root: Path, step: int | None) -> Path:
    """The checkpoint under `root` of `step`, or the newest. Effect: looks for it.

    Raises:
        ValueError: if there is none.
    """
    there = [str(step_of(path)) for path in steps(root)]
    source = latest(root) if step is None else step_dir(root, step)
    if source is None or str(step_of(source)) not in there:
        wanted = "" if source is None else f" {source.name}"
        choice = f"there are those of steps {', '.join(there)}: choose with --step" if there else "there is none at all"
        raise ValueError(f"{root} has no checkpoint{wanted}; {choice}.")
    return source


def check_free(to: Path) -> None:
    """Raises `ValueError` if `to` is taken, a URL, or where nothing can be written. Effect: makes its parent, and for a
    moment a file there."""
    if URL.match(str(to)):
        raise ValueError(f"--to {to} is a URL, and a model is written to a disk: give a directory, and copy it then.")
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise ValueError(f"{to} is taken, and a model is never overwritten. Delete it or choose another --to.")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=to.parent):
            pass
    except OSError as problem:
        raise ValueError(
            f"--to {to} cannot be made: {to.parent}: {problem.strerror}. Choose a place where you may write, or get "
            "the right to write there."
        ) from problem


if __name__ == "__main__":
    run(main, Config, __doc__)
