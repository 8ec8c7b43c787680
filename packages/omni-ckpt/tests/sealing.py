"""A manifest of a checkpoint as it is, after a test has changed a file of it on purpose."""

from pathlib import Path

from omni_ckpt.manifest import MANIFEST_FILE, seal, write_manifest


def reseal(path: Path) -> Path:
    write_manifest(path, {file.name: seal(file) for file in path.iterdir() if file.name != MANIFEST_FILE})
    return path
