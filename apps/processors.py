"""Processors of transformers as files, which travel as those of a tokenizer do: what makes arrays of media, and tokens
of chats that show them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from transformers import AutoProcessor, PreTrainedTokenizerFast
from transformers.configuration_utils import PreTrainedConfig

from omni_data import TextTokenizer, byte_tokenizer, read_tokenizer

PARTS: Final[Mapping[str, str]] = {
    "image": "image_processor",
    "video": "video_processor",
    "audio": "feature_extractor",
}
"""What of a processor makes arrays of each kind of media."""
_SPECIAL: Final = (
    *("<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
"""Tokens of the built-in processor beside bytes and the end of a text, in the order of their ids."""
_TEMPLATE: Final = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}{% if message.role == 'assistant' -%}
{% generation %}{{ message.content if message.content is string else message.content | map(attribute='text') | join }}
{{- '<|im_end|>' }}{% endgeneration %}
{%- elif message.content is string -%}
{{ message.content + '<|im_end|>' }}
{%- else -%}
{% for part in message.content %}
{%- if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- else %}{{ part.text }}{% endif %}
{%- endfor %}{{ '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def read_processor(name: str, *, template: str | None, max_pixels: int | None) -> TextTokenizer:
    """The tokenizer of a processor, whose files are those of the whole processor. Effect: reads files; a hub name may
    download them.

    Args:
        name: a folder or a model of the hub that has a processor; `bytes` for the built-in one.
        template: instead of its chat template.
        max_pixels: an image has at most, and is scaled down to; None leaves it to the processor.

    Raises:
        ValueError: if there is none, or its images have no limit in pixels.
    """
    processor = builtin_processor() if name == "bytes" else _load(name, name)
    if template is not None:
        processor.chat_template = template
    if not getattr(processor, "chat_template", None):
        raise ValueError(f"the processor of {name} has no chat template: name a file with one as --chat.template.")
    if max_pixels is not None:
        limit_pixels_(processor, name, max_pixels)
    with TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        read = read_tokenizer(folder)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}
    told = "bytes, with images" if name == "bytes" else name
    return TextTokenizer(told, read.tokenizer, read.eos_id, read.vocab_size, {**read.files, **files})


def load_processor(tokenizer: TextTokenizer) -> Any:
    """The processor whose files `tokenizer` has. Effect: writes them to a temporary folder."""
    with TemporaryDirectory() as folder:
        return _load(str(tokenizer.save(Path(folder))), tokenizer.name)


def kinds_of(processor: Any) -> tuple[str, ...]:
    """The kinds of media that a processor takes. Pure."""
    return tuple(kind for kind, part in PARTS.items() if getattr(processor, part, None) is not None)


def check_tokens(processor: Any, config: PreTrainedConfig, name: str) -> None:
    """Raises `ValueError` if the placeholders of a processor are not those of the model. Pure."""
    for kind in kinds_of(processor):
        ours, theirs = (getattr(each, f"{kind}_token_id", None) for each in (processor, config))
        if ours is not None and theirs is not None and ours != theirs:
            raise ValueError(
                f"token {ours} of the processor {name} stands for {kind}s, but for {config.model_type} it is token "
                f"{theirs}: name the processor that belongs to the model as --tokenizer, its hub name or a folder."
            )


def limit_pixels_(processor: Any, name: str, max_pixels: int) -> None:
    """Let `processor` scale images down to `max_pixels`. Raises `ValueError` if it scales to something else."""
    sees: Any = getattr(processor, "image_processor", None)
    size: Any = getattr(sees, "size", None)
    least, most = (getattr(size, f"{edge}_edge", None) for edge in ("shortest", "longest"))
    # Of some processors these are areas, and of others sides.
    if least is None or most is None or not hasattr(sees, "merge_size"):
        raise ValueError(
            f"--media.max-pixels {max_pixels}: the processor of {name} scales all images to sizes of its own: leave "
            "it out."
        )
    if max_pixels < least:
        raise ValueError(
            f"--media.max-pixels {max_pixels}: the processor of {name} scales images up to {least} pixels at least: "
            "allow as many."
        )
    sees.size = type(size)(shortest_edge=least, longest_edge=max_pixels)


def builtin_processor() -> Any:
    """That of the preset tiny-vl: bytes, images of 8 x 8 to 64 x 64 pixels, and films of such frames."""
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    core = byte_tokenizer()
    end = core.id_to_token(core.get_vocab_size() - 1)
    core.add_special_tokens([*_SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token=end)
    tokenizer.add_special_tokens({"additional_special_tokens": [*_SPECIAL]}, replace_extra_special_tokens=False)
    how: dict[str, Any] = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    sees = Qwen2VLImageProcessor(**how, size={"shortest_edge": 8 * 8, "longest_edge": 64 * 64})
    # Versions of transformers differ in what they do with frames if it is not said.
    film = {"size": {"shortest_edge": 8 * 8, "longest_edge": 16 * 64 * 64}, "cap_pixels_per_frame": False}
    watches = Qwen2VLVideoProcessor(**how, **film)
    return Qwen2_5_VLProcessor(sees, tokenizer, watches, chat_template=_TEMPLATE)


def _load(path: str, name: str) -> Any:
    load: Callable[..., Any] = AutoProcessor.from_pretrained
    try:
        processor = load(path, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as problem:
        raise ValueError(f"{name}: transformers finds no processor of media there: {problem}") from problem
    if not hasattr(processor, "tokenizer") or not kinds_of(processor):
        raise ValueError(
            f"{name} has no processor of images, films or sounds (preprocessor_config.json): name the folder or hub "
            "name of a model that has one as --tokenizer."
        )
    return processor
