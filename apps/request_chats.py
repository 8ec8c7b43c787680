"""What a finetuning run asks for: a run of apps/pretrain.py whose data are chats."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import request
import tyro

from omni_data import Learn, Packing
from omni_mesh import MeshConfig
from omni_parallel import AdamWConfig


@dataclass(frozen=True, slots=True)
class ChatConfig:
    """How chats become tokens."""

    learn: Learn = "assistant"
    """All that the assistant says, or its last message."""
    template: Path | None = None
    """A file with a chat template (Jinja). Left out: that of the tokenizer, or a plain one if it has none."""
    options: tuple[str, ...] = ()
    """Variables that the template reads, each as name=value with a value in JSON: enable_thinking=false."""


@dataclass(frozen=True, slots=True)
class Config:
    """One run, as of apps/pretrain.py, and how its chats are read."""

    run: Annotated[request.Config, tyro.conf.arg(name="")] = request.Config(
        out=Path("runs/sft"), optim=AdamWConfig(lr=2e-5), packing=Packing(how="fit", long="right")
    )
    chat: ChatConfig = ChatConfig()

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
    request.Config: {
        "model": "Model to start from: a directory with its weights, as apps/merge.py writes it, or a hub name; or a "
        "preset (tiny, qwen3-8b, ...), which is a shape only.",
        "weights": "Directory or hub name of other safetensors to start from. Left out: those of --model, or random "
        "ones if it is a preset.",
        "data": "A .jsonl, .parquet, .arrow or .tar file of chats (a record each, in one of the formats above), "
        "compressed too, a folder or pattern of them, a URL, hf:NAME for a dataset of the hub, or builtin. Several are "
        "mixed: see --mix. After stream:, as in stream:s3://bucket/chats, it is read where it is and in order, "
        "shuffled only nearby, and never copied or counted.",
        "field": None,
    }
}
"""What the flags of apps/pretrain.py are to chats, where that is something else."""
