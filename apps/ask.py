"""Asking a composed model, which sees what it is shown, and answers in text and in what its decoders draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from composed import Composed, load_composed, read_composed
from drawn import Writing
from numpy.typing import NDArray

from omni_data import Attached
from omni_data.images import MOST_PIXELS
from omni_models import Generated, OmniConfig, OmniModel, build_model, decoder_specs, fill_weights, generate


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a model said.

    Attributes:
        text: with the name of a decoder in brackets where it made outputs, as [picture].
        pictures: that were drawn, in their order, (H, W, 3) uint8 each.
    """

    text: str
    pictures: Sequence[NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A composed model, and what it reads by."""

    model: OmniModel
    composed: Composed

    def __call__(
        self, prompt: str, images: Sequence[Path] = (), *, most: int = 100, temperature: float = 0.0, seed: int = 0
    ) -> Answer:
        """The answer to a user who shows `images` and says `prompt`. Effect: reads files.

        Args:
            prompt: text.
            images: files.
            most: tokens of the answer.
            temperature: 0 takes the likeliest.
            seed: of the draws.

        Raises:
            ValueError: if a file cannot be read, or the model has no part for what it is shown.
        """
        tokenizer, device = self.composed.tokenizer, self.model.device
        said = [*[{"type": "image"}] * len(images), {"type": "text", "text": prompt}]
        shown = [Attached("image", str(path)) for path in images]
        messages, arrays = Writing(self.composed, MOST_PIXELS)([{"role": "user", "content": said}], shown)
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        media = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        how = {"eos_id": tokenizer.eos_token_id, "temperature": temperature, "seed": seed}
        return self.read(
            generate(self.model, torch.tensor(tokens, device=device), most, media=media, **how), len(tokens)
        )

    def read(self, made: Generated, start: int) -> Answer:
        """What was made after the first `start` tokens, as text and pictures. Pure."""
        composed, specs = self.composed, decoder_specs(self.composed.config)
        text, pictures = composed.tokenizer.decode(made.tokens_N[start:]), []
        for name, spec in specs.items():
            begin = "" if spec.begin_id is None else composed.spell(spec.begin_id)
            text = text.replace(begin + composed.spell(spec.token_id) * spec.count, f"[{name}]")
        for name in composed.drawing:
            drawn = made.outputs[name].split(specs[name].count)
            pictures += [composed.decode(name, codes_F) for codes_F in drawn if len(codes_F)]
        return Answer(text.removesuffix(composed.tokenizer.eos_token), pictures)


def load_asked(folder: Path, config: OmniConfig, device: str) -> Asked:
    """The merged model in `folder`, on `device`. Effect: reads files. Raises `ValueError` if it lacks something."""
    composed = load_composed(read_composed(str(folder), config=config), config)
    model = fill_weights(build_model(config, device="meta"), folder, device=device).eval()
    assert isinstance(model, OmniModel)
    return Asked(model, composed)


def keep_drawings(answer: Answer, path: Path) -> None:
    """Write what was drawn: the first to `path`, others beside it with a number. Effect: writes.

    Raises:
        ValueError: if nothing was drawn.
    """
    from PIL import Image

    if not answer.pictures:
        raise ValueError(f"--draw {path}: the model drew nothing, but answered in words: {answer.text}")
    for i, picture in enumerate(answer.pictures):
        Image.fromarray(picture).save(path if i == 0 else path.with_stem(f"{path.stem}-{i + 1}"))
