"""How much memory merges take, in a process that has done nothing else.

python merging_main.py FOLDER DTYPE

Prints the growth in MiB of a merge into files of 16 MiB, and of one into a single file, of 256 MiB of weights.
"""

import ctypes
import gc
import sys
from pathlib import Path

import torch

from omni_ckpt.dcp import save_dcp
from omni_ckpt.hf import merge_to_hf

M_MMAP_THRESHOLD = -3  # Of glibc's mallopt.
MIB = 1 << 20


def memory(field: str) -> int:
    """Bytes, of this process."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) << 10


def main(folder: Path, dtype: torch.dtype | None) -> None:
    """Effect: merges, prints."""
    # The allocator gives blocks of this size back at once, as it does those of real models: what is seen is in use.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MIB)
    model = {f"layers.{i}.weight": torch.full((MIB,), float(i)) for i in range(64)}  # 4 MiB each.
    source = save_dcp({"state": {"model": model}}, folder / "source")
    del model
    first = save_dcp({"state": {"model": {"norm": torch.ones(7)}}}, folder / "first")
    merge_to_hf(first, folder / "warm")
    for name, most in (("small", 16 * MIB), ("large", 1 << 30)):
        gc.collect()
        # What was freed, and not given back, would be taken first, and unseen.
        ctypes.CDLL(None).malloc_trim(0)
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # The peak starts again from here.
        merge_to_hf(source, folder / name, max_bytes=most, dtype=dtype)
        print((memory("VmHWM") - before) // MIB)


if __name__ == "__main__":
    main(Path(sys.argv[1]), None if sys.argv[2] == "stored" else getattr(torch, sys.argv[2]))
