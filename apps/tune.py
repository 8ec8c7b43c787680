"""What a finetuning run asks for, and what is decided of it: a run of apps/pretrain.py whose data are chats."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import request
import tyro
from chats import ChatConfig, chats
from decide import decide
from decision import Decision

from omni_data import Packing
from omni_mesh import MeshConfig
from omni_models import PRESETS
from omni_parallel import AdamWConfig


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
    def out(self) -> Path:
        """Where it is."""
        return self.run.out


def decide_chats(asked: Config) -> Decision:
    """What `asked` means on machines like this one. Effect: as `decide`. Raises `ValueError` with all that is wrong."""
    decision = decide(with_weights(asked.run), kind=chats(asked.chat))
    if asked.run.weights is None and asked.run.model in PRESETS and decision.found is None:
        return replace(decision, start=f"{decision.start}: nothing was learned before, which --weights would bring")
    return decision


def with_weights(config: request.Config) -> request.Config:
    """`config`, which starts from the weights of its model, unless that is a shape only, or others are named. Pure."""
    own = None if config.model in PRESETS else config.model
    return replace(config, weights=config.weights or own)
