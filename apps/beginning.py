"""The weights that a run starts from: what they are, in words, and whether they fit."""

from functools import partial
from pathlib import Path
from typing import Final

from disk import check_merged
from names import read_named
from request import Config
from transformers import PreTrainedModel

from omni_models import plan_weights

MOST_LR: Final = 1e-4
"""Learning rate beyond which weights that have learned lose it soon, unless adapters are trained."""


def tell_weights(config: Config) -> str:
    """Which weights a run starts from, in words: if they are random, what there would be instead. Effect: looks at the
    disk."""
    if config.weights:
        if config.optim.lr <= MOST_LR or config.lora.rank:
            return config.weights
        return f"{config.weights}; --optim.lr {config.optim.lr:g} is high for weights that have learned"
    has = any(Path(config.model).glob("*.safetensors")) if Path(config.model).is_dir() else False
    instead = f"; --weights {config.model} would start from those there" if has else ""
    return f"random weights of seed {config.seed}{instead}"


def check_weights(model: PreTrainedModel, name: str, weights: str) -> None:
    """Raises `ValueError` if `weights` do not fill `model`, which has that name. Effect: reads files."""
    check_merged(weights)
    try:
        read_named(partial(plan_weights, model), weights)
    except ValueError as problem:
        if name == weights or "these weights are not those of this model" not in str(problem):
            raise
        hint = f"--weights {weights} is to fill --model {name}: to train what it holds, say --model {weights} too."
        raise ValueError(f"{problem}\n{hint}") from problem
