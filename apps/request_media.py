"""What a run on chats with media asks for: a run of apps/sft.py whose chats show something."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import request
import request_chats
import tyro
from request_chats import ChatConfig

from omni_data import Packing
from omni_mesh import MeshConfig
from omni_models import ModelPart
from omni_parallel import AdamWConfig


@dataclass(frozen=True, slots=True)
class MediaConfig:
    """Where media are, and how large they may be."""

    folder: Path | None = None
    """Where paths of media begin. Left out: in the folder of --data."""
    max_pixels: int | None = None
    """An image is scaled down to so many pixels. Left out: to what the processor of the model says."""
    most_pixels: int = 1 << 26
    """A file of an image with more pixels is refused before it is decoded."""
    fps: float = 2.0
    """Frames of a film that are seen of each second."""
    max_frames: int = 64
    """Frames of a film that are seen at most, evenly spread."""
    max_seconds: float = 30.0
    """A longer sound is refused."""


@dataclass(frozen=True, slots=True)
class PartsConfig:
    """How modules of the model lie over ranks, where that is not as all others do."""

    replicated: tuple[str, ...] = ()
    """Modules that every rank has whole, as encoders.image.tower: nothing is gathered for them, and their gradients are
    summed. Left out: they are sharded as the rest."""


@dataclass(frozen=True, slots=True)
class Config:
    """One run, as of apps/pretrain.py, how its chats are read, and what is shown in them."""

    run: Annotated[request.Config, tyro.conf.arg(name="")] = request.Config(
        model="tiny-vl", out=Path("runs/omni"), optim=AdamWConfig(lr=2e-5), packing=Packing(how="fit", long="right")
    )
    chat: ChatConfig = ChatConfig()
    media: MediaConfig = MediaConfig()
    freeze_parts: tuple[ModelPart, ...] = ()
    """Parts of the model that are not trained: towers, what joins them to the language model (projector), or that."""
    parts: PartsConfig = PartsConfig()
    tower_lr: float | None = None
    """Learning rate of towers at the peak of the schedule. Left out: that of all."""

    @property
    def mesh(self) -> MeshConfig:
        """On how many ranks it runs."""
        return self.run.mesh

    @property
    def max_restarts(self) -> int:
        """How often they are started again."""
        return self.run.max_restarts

    @property
    def explain(self) -> bool:
        """Whether it is told which kernels are used where, and nothing more."""
        return self.run.explain

    @property
    def out(self) -> Path:
        """Where it is."""
        return self.run.out


TOLD: Final = {
    request.Config: request_chats.TOLD[request.Config]
    | {
        "model": "Model to start from: a directory with its weights and processor, as apps/merge.py writes it, or a "
        "hub name; or a preset (tiny-vl, qwen2.5-vl-7b, ...), which is a shape only.",
        "data": "A .jsonl, .parquet, .arrow or .tar file of chats with media (docs/media.md), compressed too, a folder "
        "or pattern of them, a URL, hf:NAME for a dataset of the hub, or builtin. Several are mixed: see --mix. After "
        "stream:, it is read where it is and in order.",
        "virtual_shards": "Streams that the chats are dealt to; the number of ranks that read data must always divide "
        "it, and each holds images of some rows. Left out: that of the checkpoint, or 24, or the next number that "
        "these ranks divide as well.",
        "tokenizer": "A directory or hub name with a processor, or bytes. Left out: the model's own, and bytes for a "
        "preset, which fits tiny-vl.",
    }
}
"""What the flags of apps/pretrain.py are to chats with media, where that is something else."""
