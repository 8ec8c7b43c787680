"""What is decided of a run on chats with media: a run of apps/sft.py whose chats show something."""

from dataclasses import replace

import request
import tune
from decide import decide, read_merged
from decision import Decision
from drawn import drawn
from kinds import Kind
from refusal import attempt
from request_media import Config
from seen import seen
from tune import tell_start, with_weights

from omni_models import OmniConfig, build_model, find_parts


def decide_media(asked: Config) -> Decision:
    """What `asked` means on machines like this one. Effect: as `decide`. Raises `ValueError` with all that is wrong."""
    tune.refuse_field(asked.run)
    config = settled(asked)
    how = {"frozen": asked.freeze_parts, "replicated": asked.parts.replicated}
    return tell_start(asked.run, decide(config, kind=kind_of(asked, config.model), **how))


def kind_of(asked: Config, name: str) -> Kind:
    """What the records of a run of the model of that name are: chats whose assistant may draw if it is composed, and
    chats with media if not. Effect: reads files. Raises `ValueError` if what is asked of them cannot be meant."""
    model_config = attempt([], read_merged, name)
    if isinstance(model_config, OmniConfig):
        return drawn(asked.chat, asked.media, model_config)
    return seen(asked.chat, asked.media, name)


def settled(asked: Config) -> request.Config:
    """The run that `asked` means, with the weights of its model, and the learning rate of its towers by their names.
    Effect: reads files, and the hub if asked to.

    Raises:
        ValueError: if towers have a learning rate that they cannot have.
    """
    config, rate = with_weights(asked.run), asked.tower_lr
    if rate is None:
        return config
    if not (rate >= 0 and config.optim.lr > 0) or "tower" in asked.freeze_parts:
        raise ValueError(
            f"--tower-lr {rate:g} must be at least 0, and is a share of --optim.lr {config.optim.lr:g}, which must be "
            "positive; towers that are frozen have none."
        )
    # What is wrong with the model is told with all else by `decide`.
    model_config = attempt([], read_merged, config.model)
    model = attempt([], build_model, model_config, device="meta") if model_config else None
    parts = find_parts(model) if model else {}
    scales = [(name, rate / config.optim.lr) for name in parts.get("tower", ())]
    scales += [(name, 1.0) for name in parts.get("projector", ())]
    return replace(config, optim=replace(config.optim, lr_scale=(*config.optim.lr_scale, *scales)))
