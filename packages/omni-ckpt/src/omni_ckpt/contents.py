"""What a checkpoint holds, for people and programs: nothing of it is loaded or run. Effect: disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_ckpt.manifest import Sealed, glance, read_manifest
from omni_ckpt.places import as_place
from omni_ckpt.storage import read_plain, stored
from omni_ckpt.tree import TensorSpec


@dataclass(frozen=True, slots=True)
class Contents:
    """What `inspect` found."""

    path: Path
    tensors: dict[str, TensorSpec]
    """Shape of the whole and dtype, by flat name."""
    plain: dict[str, Any]
    """The plain values, in the nesting of the tree."""
    files: dict[str, Sealed]
    """Size and digest of each, as the manifest has them."""
    problems: tuple[str, ...]
    """What is wrong at first sight: `verify` reads every file."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(spec.nbytes for spec in self.tensors.values())

    @property
    def params(self) -> int:
        """Elements of the tensors."""
        return sum(spec.nbytes // spec.dtype.itemsize for spec in self.tensors.values())


def inspect(path: Path) -> Contents:
    """What checkpoint `path` holds. Effect: reads its index, its plain values and its manifest.

    Raises:
        ValueError: if it is no checkpoint, or one of these is damaged.
    """
    path = as_place(path)
    return Contents(path, stored(path), read_plain(path), read_manifest(path), tuple(glance(path)))
