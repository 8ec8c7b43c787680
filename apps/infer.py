"""Continue a text with a merged model, by plain transformers.

    uv run apps/infer.py runs/pretrain/merged --prompt "The "
    uv run apps/infer.py Qwen/Qwen3-0.6B --prompt "Once" --temperature 0.8
    uv run apps/infer.py runs/sft/merged-200 --chat --prompt "What is a list?"
    uv run apps/infer.py runs/omni/merged-200 --image cat.png --prompt "What is it?"
    uv run apps/infer.py runs/drawn/merged-300 --prompt "Draw a red circle" --draw drawn.png

Without --temperature it is the likeliest continuation.
"""

from preflight import check_flags, run
from request_infer import Config

if __name__ == "__main__":
    check_flags(Config, __doc__)  # What is wrong with them is told before torch is there.

from pathlib import Path
from typing import Any

import torch
from ask import keep_drawings, load_asked
from disk import check_merged
from names import nearest, read_named
from refusal import attempt
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from omni_data import read_image
from omni_models import OmniConfig, read_config


def main(config: Config) -> None:
    """Print the prompt and its continuation. Effect: reads weights.

    Raises:
        ValueError: if there is no such model, or nothing to continue.
    """
    if not Path(config.model).is_dir() and config.model.count("/") != 1:
        near = nearest(Path(config.model)) or ". Merge a run first: uv run apps/merge.py RUN --to DIR"
        raise ValueError(f"there is no directory {config.model}{near}")
    problems = [
        f"{name}={value} must be at least {least}."
        for name, value, least in (("tokens", config.tokens, 1), ("temperature", config.temperature, 0))
        if value < least
    ]
    if not config.prompt:
        problems.append("an empty prompt leaves nothing to continue; give at least a letter.")
    attempt(problems, check_merged, config.model)
    images = [attempt(problems, read_image, path) for path in config.image]
    found = None if problems else attempt(problems, read_named, read_config, config.model)
    if found is None:
        raise ValueError("\n".join(problems))
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(found, OmniConfig):
        how = {"most": config.tokens, "temperature": config.temperature, "seed": config.seed}
        answer = load_asked(Path(config.model), found, device)(config.prompt, config.image, **how)
        print(answer.text)
        return keep_drawings(answer, config.draw) if config.draw else None
    if config.draw:
        raise ValueError(f"{config.model} draws nothing, as it is no composed model with decoders: leave out --draw.")
    tokenizer = AutoTokenizer.from_pretrained(config.model, trust_remote_code=False)
    prompt = show(config, images) if images else write(config, tokenizer)
    try:
        model: Any = kind_of(found, sees=bool(images)).from_pretrained(config.model, trust_remote_code=False)
    except RuntimeError as problem:
        raise ValueError(f"transformers cannot load {config.model}: {problem}") from problem
    model = model.to(device).eval()
    torch.manual_seed(config.seed)
    draw = {"do_sample": True, "temperature": config.temperature} if config.temperature else {"do_sample": False}
    out = model.generate(**prompt.to(device), max_new_tokens=config.tokens, pad_token_id=tokenizer.eos_token_id, **draw)
    print(tokenizer.decode(out[0], skip_special_tokens=True))


def kind_of(config: PreTrainedConfig, *, sees: bool) -> Any:
    """What of transformers loads such a model, with its towers if it `sees`, or is there with them alone. Pure."""
    text = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not sees
    return AutoModelForCausalLM if text else AutoModelForImageTextToText


def write(config: Config, tokenizer: Any) -> Any:
    """The prompt as tensors.

    Raises:
        ValueError: if it is to be a chat, and there is no template.
    """
    if config.chat and not tokenizer.chat_template:
        raise ValueError(f"{config.model} has no chat template: leave out --chat, or finetune it with apps/sft.py.")
    said = [{"role": "user", "content": config.prompt}]
    how = {"tokenize": False, "add_generation_prompt": True}
    text = tokenizer.apply_chat_template(said, **how) if config.chat else config.prompt
    return tokenizer(text, add_special_tokens=not config.chat, return_tensors="pt")


def show(config: Config, images: list[Any]) -> Any:
    """The images and the prompt, as a user says them, as tensors. Effect: reads files.

    Raises:
        ValueError: if the model has no processor of images, or that has no chat template.
    """
    processor: Any = AutoProcessor.from_pretrained(config.model, trust_remote_code=False)
    if not hasattr(processor, "image_processor") or not processor.chat_template:
        raise ValueError(f"{config.model} has no processor of images with a chat template: leave out --image.")
    parts = [*[{"type": "image"}] * len(images), {"type": "text", "text": config.prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    how = {"input_data_format": "channels_last"}
    return processor(text=[text], images=[images], images_kwargs=how, return_tensors="pt")


if __name__ == "__main__":
    run(main, Config, __doc__)
