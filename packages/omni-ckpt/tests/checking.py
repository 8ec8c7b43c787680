"""How ranks share the files of a checkpoint when they look for damage: a case of `ranks_main.py`."""

from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist

from omni_ckpt import recover
from omni_ckpt.manifest import Sealed, damages, read_manifest
from omni_ckpt.ranks import gather


def check_shares(path: Path) -> dict[str, str]:
    """What is found where nothing is wrong, whether each file was read by one rank alone, and what is found where one
    file after the other is damaged. Effect: collective; damages files of `path` and mends them."""
    read: list[str] = []

    def note(path: Path, files: Mapping[str, Sealed]) -> list[str]:
        read.extend(files)
        return damages(path, files)

    recover.damages = note
    wrong, names = recover.check_together(path), sorted(read_manifest(path))
    recover.damages = damages
    once = sorted(name for each in gather(read) for name in each) == names
    found = []
    for name in names:
        whole = (path / name).read_bytes()
        dist.barrier()
        if dist.get_rank() == 0:
            (path / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        dist.barrier()
        found.append([problem.removeprefix(f"{path}/") for problem in recover.check_together(path)])
        if dist.get_rank() == 0:
            (path / name).write_bytes(whole)
        dist.barrier()
    return {"nothing wrong": str(wrong), "each is read once": str(once), "damages found": str(found)}
