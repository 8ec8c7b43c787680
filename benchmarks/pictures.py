"""Chats with images of many sizes: processor/, as of Qwen2.5-VL with a tokenizer of random words, pictures.jsonl and
pictures/, in the working directory.

uv run benchmarks/pictures.py

Images have 16 to 64 patches a side, 1,600 in the mean, with as many words between them that rows of 32,768 tokens hold
38 of them and 62,000 patches. Their content is noise, which JPEG makes no smaller than a photograph.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

SPECIAL = {
    **{151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"},
    **{151652: "<|vision_start|>", 151653: "<|vision_end|>", 151655: "<|image_pad|>", 151656: "<|video_pad|>"},
}
"""Tokens of Qwen2.5-VL, by id; all others are words."""
TEMPLATE = """\
{%- for message in messages %}<|im_start|> {% for part in message.content %}
{%- if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %} {{ part.text }} {% endif %}
{%- endfor %}<|im_end|>{% endfor %}"""
PATCH = 14


@dataclass(frozen=True, slots=True)
class Config:
    """What to draw."""

    chats: int = 256
    """Each of some images, a question and an answer."""
    images: int = 4
    """Of a chat."""
    words: int = 420
    """After each image."""
    least: int = 16
    """Patches of a side."""
    most: int = 64


def main(config: Config) -> None:
    """Effect: writes them."""
    vocabulary = {SPECIAL.get(i, f"w{i}"): i for i in range(151_657)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL.values()]}, replace_extra_special_tokens=False)
    area = (config.most * PATCH) ** 2
    how = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": 4 * PATCH**2, "longest_edge": area}
    sees, watches = Qwen2VLImageProcessor(**how, size=size), Qwen2VLVideoProcessor(**how)
    Qwen2_5_VLProcessor(sees, tokenizer, watches, chat_template=TEMPLATE).save_pretrained("processor")
    rng, folder = np.random.default_rng(0), Path("pictures")
    random.seed(0)
    folder.mkdir(exist_ok=True)
    with Path("pictures.jsonl").open("w") as file:
        for chat in range(config.chats):
            asked: list[dict[str, str]] = []
            for i in range(config.images):
                name = folder / f"{chat}-{i}.jpg"
                # Patches are merged two by two.
                high, wide = (2 * random.randint(config.least // 2, config.most // 2) * PATCH for _ in range(2))
                Image.fromarray(rng.integers(0, 256, (high, wide, 3), np.uint8)).save(name, quality=50)
                asked += [{"type": "image", "image": str(name)}, {"type": "text", "text": say(config.words)}]
            answered = asked.pop()
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": [answered]}]
            file.write(json.dumps({"messages": messages}) + "\n")


def say(count: int) -> str:
    """So many random words."""
    return " ".join(f"w{random.randrange(151_643)}" for _ in range(count))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
