"""What is decided of a finetuning run: a run of apps/pretrain.py whose data are chats."""

from dataclasses import replace

import request
from chats import chats
from decide import decide
from decision import Decision
from request_chats import Config

from omni_models import PRESETS


def decide_chats(asked: Config) -> Decision:
    """What `asked` means on machines like this one. Effect: as `decide`. Raises `ValueError` with all that is wrong."""
    refuse_field(asked.run)
    return tell_start(asked.run, decide(with_weights(asked.run), kind=chats(asked.chat)))


def refuse_field(config: request.Config) -> None:
    """Raises `ValueError` if a field of documents is named. Pure."""
    if config.field != request.Config().field:
        raise ValueError(
            f"--field {config.field} has no meaning for chats, whose fields tell which format they have "
            "(docs/data.md): leave it out, and rename the field to messages."
        )


def tell_start(config: request.Config, decision: Decision) -> Decision:
    """`decision`, which says if a run of `config` begins with weights that learned nothing. Pure."""
    if config.weights is None and config.model in PRESETS and decision.found is None:
        return replace(decision, start=f"{decision.start}: nothing was learned before, which --weights would bring")
    return decision


def with_weights(config: request.Config) -> request.Config:
    """`config`, which starts from the weights of its model, unless that is a shape only, or others are named. Pure."""
    own = None if config.model in PRESETS else config.model
    return replace(config, weights=config.weights or own)
