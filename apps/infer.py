"""Continue a text with a merged model, by plain transformers.

    uv run apps/infer.py runs/pretrain/merged --prompt "The "
    uv run apps/infer.py Qwen/Qwen3-0.6B --prompt "Once" --temperature 0.8
    uv run apps/infer.py runs/sft/merged-200 --chat --prompt "What is a list?"

Without --temperature it is the likeliest continuation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from disk import check_merged
from names import read_named
from preflight import attempt, run
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from omni_models import read_config


@dataclass(frozen=True, slots=True)
class Config:
    """What to continue, and how."""

    model: tyro.conf.Positional[str]
    """Directory of a merged model, or a hub name."""
    prompt: str = "The "
    """Text to continue."""
    chat: bool = False
    """The prompt is what a user says, written by the chat template of the tokenizer."""
    tokens: int = 100
    """Most tokens to add."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher draws more freely."""
    seed: int = 0
    """Of the draws."""


def main(config: Config) -> None:
    """Print the prompt and its continuation. Effect: reads weights.

    Raises:
        ValueError: if there is no such model, or nothing to continue.
    """
    if not Path(config.model).is_dir() and config.model.count("/") != 1:
        raise ValueError(f"there is no directory {config.model}. Merge a run first: uv run apps/merge.py RUN --to DIR")
    problems = [
        f"{name}={value} must be at least {least}."
        for name, value, least in (("tokens", config.tokens, 1), ("temperature", config.temperature, 0))
        if value < least
    ]
    if not config.prompt:
        problems.append("an empty prompt leaves nothing to continue; give at least a letter.")
    attempt(problems, check_merged, config.model)
    if not problems:
        attempt(problems, read_named, read_config, config.model)
    if problems:
        raise ValueError("\n".join(problems))
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(config.model, trust_remote_code=False)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(config.model, trust_remote_code=False)
    except RuntimeError as problem:
        raise ValueError(f"transformers cannot load {config.model}: {problem}") from problem
    model = model.to(device).eval()
    torch.manual_seed(config.seed)
    draw = {"do_sample": True, "temperature": config.temperature} if config.temperature else {"do_sample": False}
    if config.chat and not tokenizer.chat_template:
        raise ValueError(f"{config.model} has no chat template: leave out --chat, or finetune it with apps/sft.py.")
    said = [{"role": "user", "content": config.prompt}]
    how = {"tokenize": False, "add_generation_prompt": True}
    text = tokenizer.apply_chat_template(said, **how) if config.chat else config.prompt
    prompt = tokenizer(text, add_special_tokens=not config.chat, return_tensors="pt").to(device)
    out = model.generate(**prompt, max_new_tokens=config.tokens, pad_token_id=tokenizer.eos_token_id, **draw)
    print(tokenizer.decode(out[0], skip_special_tokens=True))


if __name__ == "__main__":
    run(main, Config, __doc__)
