"""What makes tokens and arrays for a composed model, as files that travel with those of its tokenizer: a processor of
images of transformers, and for a decoder that draws, named after it, the codes of its patches."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from chats import PLAIN, chat_tokenizer, read_chat_tokenizer
from numpy.typing import NDArray
from processors import limit_pixels_
from transformers import AutoImageProcessor, PreTrainedTokenizerFast

from omni_data import COLOURS, DRAWINGS, PLACES, SHAPES, TextTokenizer, byte_tokenizer, draw_shape
from omni_models import OmniConfig, VQTokenizer, decoder_specs, encoder_specs, fit_tokenizer, read_vq, save_vq

IMAGES: Final = "preprocessor_config.json"
"""The file of a processor of images."""
CODES: Final = ".npz"
"""How the name of a file ends that has the codes of a decoder's patches; it begins with the name of the decoder."""
_SPECIAL: Final = ("<|image|>", "<|code|>", "<|draw|>")
_WORDS: Final = (*COLOURS, *SHAPES, "at the", "top", "bottom", "left", "right")
"""Tokens of the built-in tokenizer beside bytes and the end of a text, in the order of their ids: what stands for no
text, and then words that are tokens, with a space before them."""


@dataclass(frozen=True, slots=True, eq=False)
class Composed:
    """What a composed model reads by.

    Attributes:
        config: of the model.
        tokenizer: of transformers, a fast one with a chat template.
        image_processor: of transformers; None if the model encodes no images.
        drawing: by decoder, what turns pictures into codes and back.
    """

    config: OmniConfig
    tokenizer: Any
    image_processor: Any | None
    drawing: Mapping[str, VQTokenizer]

    def spell(self, token_id: int) -> str:
        """A token as text that is read as it again. Pure."""
        return self.tokenizer.convert_ids_to_tokens(token_id)

    def side(self, decoder: str) -> int:
        """Pixels of a side of a picture that a decoder draws. Pure."""
        return self.drawing[decoder].patch * isqrt(decoder_specs(self.config)[decoder].count)

    def encode(self, decoder: str, picture_HWC: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The codes of a picture, (F,), which is scaled to the size that the decoder draws. Pure."""
        from PIL import Image

        side = self.side(decoder)
        if picture_HWC.shape[:2] != (side, side):
            picture_HWC = np.asarray(Image.fromarray(picture_HWC).resize((side, side)))
        return self.drawing[decoder].encode(torch.from_numpy(picture_HWC.copy())[None])[0].numpy()

    def decode(self, decoder: str, codes_F: torch.Tensor) -> NDArray[np.uint8]:
        """The picture of codes, (H, W, 3). Pure."""
        return self.drawing[decoder].decode(codes_F.cpu()[None], self.side(decoder))[0].numpy()


def read_composed(
    name: str, *, config: OmniConfig, template: str | None = None, max_pixels: int | None = None
) -> TextTokenizer:
    """The tokenizer in a folder, whose files are all that `load_composed` needs. Effect: reads files.

    Args:
        name: of the folder; `bytes` for the built-in one.
        config: of the model.
        template: instead of its chat template; a plain one if it has none.
        max_pixels: an image has at most, and is scaled down to; None leaves it to the processor of images.

    Raises:
        ValueError: if there is no such folder, or it lacks something that this model needs; all of it at once.
    """
    with TemporaryDirectory() as temporary:
        folder = write_builtin(Path(temporary)) if name == "bytes" else Path(name).expanduser()
        if not folder.is_dir():
            raise ValueError(f"{name} is no folder here: a composed model, its tokenizer and all, is read from one.")
        read = read_chat_tokenizer(str(folder), template=template)
        wanted = [IMAGES] if "image" in encoder_specs(config) else []
        wanted += [f"{decoder}{CODES}" for decoder in decoder_specs(config) if (folder / f"{decoder}{CODES}").is_file()]
        if not (folder / IMAGES).is_file() and IMAGES in wanted:
            raise ValueError(f"{name} has no {IMAGES}, but the model encodes images: save the processor of its tower.")
        files = {**read.files, **{file: (folder / file).read_bytes() for file in wanted}}
        told = "bytes, with pictures" if name == "bytes" else read.name
        tokenizer = replace(read, name=told, files=files)
        loaded = load_composed(tokenizer, config)
        if max_pixels is None:
            return tokenizer
        limit_pixels_(loaded, name, max_pixels)
        with TemporaryDirectory() as limited:
            loaded.image_processor.save_pretrained(limited)  # pyright: ignore[reportOptionalMemberAccess]
            return replace(tokenizer, files={**files, IMAGES: (Path(limited) / IMAGES).read_bytes()})


def load_composed(tokenizer: TextTokenizer, config: OmniConfig) -> Composed:
    """What the files of `tokenizer` hold. Effect: writes them to a temporary folder.

    Raises:
        ValueError: if they do not fit the model, with all that does not.
    """
    with TemporaryDirectory() as temporary:
        folder = tokenizer.save(Path(temporary))
        images = None
        if IMAGES in tokenizer.files:
            try:
                images = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
            except (OSError, ValueError, ImportError) as problem:
                raise ValueError(f"{tokenizer.name}: transformers reads no {IMAGES}: {problem}") from problem
        names = [name for name in decoder_specs(config) if f"{name}{CODES}" in tokenizer.files]
        drawing = {name: read_vq(folder / f"{name}{CODES}") for name in names}
    composed = Composed(config, chat_tokenizer(tokenizer), images, drawing)
    if problems := fit_problems(composed):
        told = "\n".join(f"  - {problem}" for problem in problems)
        raise ValueError(f"{tokenizer.name} does not fit the model:\n{told}")
    return composed


def fit_problems(composed: Composed) -> list[str]:
    """Why tokens and codes are not those of the model, in words. Pure."""
    decoders, problems = decoder_specs(composed.config), []
    tokens = {f"the placeholder of {kind}s": spec.token_id for kind, spec in encoder_specs(composed.config).items()}
    tokens |= {f"the token of {name}": spec.token_id for name, spec in decoders.items()}
    tokens |= {f"the beginning of {n}": s.begin_id for n, s in decoders.items() if s.begin_id is not None}
    for what, token in tokens.items():
        spelled = composed.spell(token)
        if spelled is None or composed.tokenizer(spelled, add_special_tokens=False)["input_ids"] != [token]:
            problems.append(f"{what} is {token}, which the tokenizer has no spelling of: add it as a special token.")
    for name, codes in composed.drawing.items():
        spec = decoders[name]
        if isqrt(spec.count) ** 2 != spec.count or spec.count < 1:
            problems.append(f"{name} draws count={spec.count} patches, which are no square: pictures are square here.")
        known = spec.head.args.get("codes")
        if known is not None and known != len(codes.codebook_KD):
            problems.append(f"{name}{CODES} has {len(codes.codebook_KD)} codes, and the decoder {known}.")
    if len(composed.drawing) > 1:
        problems.append(f"{' and '.join(composed.drawing)} both draw: keep the codes of one of them.")
    return problems


def write_builtin(folder: Path) -> Path:
    """The folder, with what the preset tiny-omni reads by: bytes and some words, images of 16 x 16 pixels, and codes of
    what `builtin_drawings` asks for. Effect: writes files."""
    from transformers.models.siglip.image_processing_siglip import SiglipImageProcessor

    core = byte_tokenizer()
    end = core.id_to_token(core.get_vocab_size() - 1)
    core.add_special_tokens([*_SPECIAL])
    core.add_tokens([f" {word}" for word in _WORDS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end)
    tokenizer.chat_template = PLAIN
    tokenizer.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    pictures = np.stack([draw_shape(colour, shape, *PLACES[place]) for colour, shape, place in DRAWINGS])
    save_vq(fit_tokenizer(torch.from_numpy(pictures), 48, 4), folder / f"picture{CODES}")
    return folder
