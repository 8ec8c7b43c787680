"""Fetch a model or a dataset of the hub, where there is network, for runs where there is none.

    uv run apps/download.py Qwen/Qwen3-0.6B                              into the hub's cache, where --model finds it
    uv run apps/download.py Qwen/Qwen3-0.6B --to models/qwen             into a folder, for --model models/qwen
    uv run apps/download.py allenai/c4 --dataset --only "en/*-0000?-*.gz" --to data/c4
    uv run apps/download.py NAME --mirror https://hub.example.org        from another hub

What was cut short goes on where it stopped. Private and gated ones need `hf auth login`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tyro
from disk import free_bytes, size_of
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from preflight import run

MODEL_FILES: Final = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
"""What a model is read from. Weights in pickles are never read, and copies for other programs are not needed."""


@dataclass(frozen=True, slots=True)
class Config:
    """What to fetch, and to where."""

    name: tyro.conf.Positional[str]
    """Of the model or the dataset on the hub."""
    dataset: bool = False
    """It is a dataset."""
    revision: str | None = None
    """Branch, tag or commit. Left out: the newest."""
    only: tuple[str, ...] = ()
    """Patterns of files to fetch. Left out: of a model, weights in safetensors, configuration and tokenizer; of a
    dataset, all."""
    skip: tuple[str, ...] = ()
    """Patterns of files to leave out."""
    to: Path | None = None
    """A folder. Left out: the cache of the hub, where its name is enough to find it."""
    mirror: str | None = None
    """Address of another hub. Left out: HF_ENDPOINT of the environment, or the hub itself."""


def main(config: Config) -> None:
    """Fetch it. Effect: network, disk.

    Raises:
        ValueError: if it cannot be had, with what to do about it.
    """
    wanted: dict[str, Any] = {
        "repo_type": "dataset" if config.dataset else "model",
        "revision": config.revision,
        "allow_patterns": list(config.only) or (None if config.dataset else list(MODEL_FILES)),
        "ignore_patterns": list(config.skip) or None,
        "local_dir": config.to,
        "endpoint": config.mirror,
    }
    hub = config.mirror or constants.ENDPOINT
    try:
        files: Any = snapshot_download(config.name, dry_run=True, **wanted)
        check_files(config, files)
        folder = snapshot_download(config.name, **wanted)
    except (DryRunError, FileMetadataError, HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as problem:
        raise ValueError(explain(config.name, hub, problem)) from problem
    size = sum(file.file_size for file in files)
    flag = "data" if config.dataset else "model"
    named = folder if config.to or config.dataset else config.name
    print(f"{len(files)} files, {size_of(size)}, are in {folder}. Use them: --{flag} {named}")


def check_files(config: Config, files: Any) -> None:
    """Raises `ValueError` if no file is asked for, or the disk has no room for them. Effect: asks the disk."""
    if not files:
        raise ValueError(f"{config.name} has no file that --only and --skip leave: choose other patterns.")
    needed = sum(file.file_size for file in files if file.will_download)
    place = config.to or Path(constants.HF_HUB_CACHE)
    if (free := free_bytes(place)) < needed:
        raise ValueError(
            f"{place} has {size_of(free)} free, and {size_of(needed)} are to come: make room, choose another "
            "--to, or fewer files by --only."
        )


def explain(name: str, hub: str, problem: BaseException) -> str:
    """Why `name` cannot be had from `hub`, and what to do about it. Pure."""
    causes = [problem, problem.__cause__, problem.__context__]

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if is_any(GatedRepoError):
        return f"{name} is gated: ask for access on its page at {hub}/{name}, then `hf auth login`."
    if is_any(RepositoryNotFoundError):
        return (
            f"{hub} has no {name}, or it is private: look at the spelling, say --dataset if it is a dataset, or "
            "`hf auth login`."
        )
    if is_any(RevisionNotFoundError):
        return f"{name} has no such --revision: leave it out for the newest."
    if is_any(HFValidationError):
        return f"{name} is no name of the hub: it is spelled OWNER/NAME."
    why = problem.__cause__ or problem
    return (
        f"{hub} cannot be reached for {name} ({type(why).__name__}: {why}). Without network, run this where there is "
        "some, and copy the folder of --to here, or HF_HOME; behind a firewall, name a --mirror."
    )


if __name__ == "__main__":
    run(main, Config, __doc__)
