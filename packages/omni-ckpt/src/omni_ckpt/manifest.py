"""The manifest of a checkpoint: every file of it, with its size and a digest of its bytes. Effect: disk.

    MANIFEST.json     {"version": 1, "digest": "xxh3_128", "files": {name: {"size": bytes, "digest": hex}}}

Digests are made while files are written, of what was meant to be written; what the disk gives back later is compared
with them. XXH3 (Collet, 2019) is faster than any disk. It finds damage, not forgery: whoever can change a file can
change the manifest too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from omni_ckpt.disk import is_inside, leads_out, read_json, write_json
from omni_ckpt.layout import MANIFEST_FILE
from omni_ckpt.places import as_place, asking, entries, size_of

PIN_FILE = "PINNED"
"""Whoever puts a file of this name into a checkpoint keeps it from being pruned."""
INDEX_FILE = ".metadata"
PLAIN_FILE = "state.json"
VERSION = 1
DIGEST = "xxh3_128"

SHARD = ".distcp"
"""What the names of shards end in."""

_PIECE = 1 << 22


class NewerFormat(ValueError):
    """A checkpoint that is not damaged, but not for this version."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a file was when it was written."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found of a checkpoint."""

    path: Path
    files: int
    nbytes: int
    problems: tuple[str, ...]
    """In words; none if every file is what it was."""
    strange: tuple[str, ...] = ()
    """In words: what is there, and in no manifest. It is no damage: nothing reads it."""


def write_manifest(path: Path, files: Mapping[str, Sealed]) -> None:
    """Write the manifest of `files` into the directory `path`, durably."""
    entries = {name: asdict(sealed) for name, sealed in sorted(files.items())}
    write_json({"version": VERSION, "digest": DIGEST, "files": entries}, path / MANIFEST_FILE)


def read_manifest(path: Path) -> dict[str, Sealed]:
    """The files of checkpoint `path`, by name, as they were when it was written.

    Raises:
        ValueError: if `path` has no manifest, or one that is damaged, newer than this, or names files elsewhere.
    """
    version, digest, files = read_json(path, MANIFEST_FILE, _take)
    file = as_place(path) / MANIFEST_FILE
    if isinstance(version, int) and version > VERSION:
        raise NewerFormat(f"{file} has version {version}; this omni_ckpt reads {VERSION}: use a newer one.")
    if (version, digest) != (VERSION, DIGEST):
        raise ValueError(f"{file} has version {version} with {digest}; this omni_ckpt reads {VERSION} with {DIGEST}.")
    if outside := [name for name in files if not is_inside(name)]:
        raise ValueError(f"{file} names files outside of the checkpoint: {', '.join(outside[:10])}.")
    if lacking := [name for name in (INDEX_FILE, PLAIN_FILE) if name not in files]:
        raise ValueError(f"{file} is damaged: it does not name {' and '.join(lacking)}, which each checkpoint has.")
    return files


def _take(content: Any) -> tuple[int, str, dict[str, Sealed]]:
    version, digest = content["version"], content["digest"]
    if (version, digest) != (VERSION, DIGEST):
        return version, digest, {}  # Of which nothing else is known.
    return version, digest, {name: _sealed(entry["size"], entry["digest"]) for name, entry in content["files"].items()}


def _sealed(size: Any, digest: Any) -> Sealed:
    if type(size) is not int or size < 0 or not isinstance(digest, str):
        raise ValueError(f"a file has the size {size!r:.50} and the digest {digest!r:.50}")
    return Sealed(size, digest)


def seal(file: Path) -> Sealed:
    """What `file` is now. Reads all of it."""
    hasher, size = xxhash.xxh3_128(), 0
    with asking(file), file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            hasher.update(piece)
            size += len(piece)
    return Sealed(size, hasher.hexdigest())


def damages(path: Path, files: Mapping[str, Sealed], *, shards: bool = True) -> list[str]:
    """Which of `files` in the directory `path` are not what they were, and how.

    Those whose size is right are read; shards only if `shards`.
    """
    problems = []
    for name, sealed in files.items():
        file = path / name
        if leads_out(file):
            problems.append(f"{file} is a link out of the checkpoint")
        elif (size := size_of(file)) is None:
            problems.append(f"{file} is missing")
        elif size != sealed.size:
            problems.append(f"{file} has {size} of {sealed.size} bytes")
        elif (shards or file.suffix != SHARD) and seal(file) != sealed:
            problems.append(f"{file} holds other bytes than were written")
    return problems


def glance(path: Path) -> list[str]:
    """What is wrong with checkpoint `path` at first sight: a manifest that cannot be read, files that are not there or
    have other sizes, an index or plain values that are not what was written. Shards are not read; `verify` reads all.

    Raises:
        NewerFormat: if a newer version wrote it.
        OSError: if a file is there, but cannot be read: that is no damage.
    """
    try:
        return damages(path, read_manifest(path), shards=False)
    except NewerFormat:
        raise
    except ValueError as problem:
        return [str(problem)]


def verify(path: Path) -> Report:
    """What is wrong with checkpoint `path`, if anything: every file of its manifest is read. Not collective; nothing in
    it is run. A load, and a run that chooses a checkpoint, find the same wrong.

    Raises:
        ValueError: if `path` has no manifest, or one that is damaged.
        OSError: if a file is there, but cannot be read.
    """
    path = as_place(path)
    files = read_manifest(path)
    strange = [file.name for file in entries(path) if file.name not in {*files, MANIFEST_FILE, PIN_FILE}]
    return Report(
        path,
        len(files),
        sum(sealed.size for sealed in files.values()),
        tuple(damages(path, files)),
        tuple(f"{path / name} is in no manifest" for name in strange),
    )


def refuse_damages(path: Path, problems: Iterable[str]) -> None:
    """Raises `ValueError` if there are `problems`, with the first of them."""
    if found := list(problems):
        raise ValueError(f"{path} is damaged: {len(found)} file{'s' * (len(found) != 1)}. {'; '.join(found[:10])}.")
