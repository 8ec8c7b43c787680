"""What `infer` may be asked for: a field is a flag, told by its docstring."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, slots=True)
class Config:
    """What to continue, and how."""

    model: tyro.conf.Positional[str]
    """Directory of a merged model, or a hub name."""
    prompt: str = "The "
    """Text to continue."""
    chat: bool = False
    """The prompt is what a user says, written by the chat template of the tokenizer."""
    image: tuple[Path, ...] = ()
    """Files of images that a user shows before the prompt, written by the chat template of the processor."""
    draw: Path | None = None
    """File to write what a composed model draws in its answer, a .png. Left out: it is not kept."""
    tokens: int = 100
    """Most tokens to add."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher draws more freely."""
    seed: int = 0
    """Of the draws."""
