"""Text to token ids, without transformers: the built-in byte tokenizer, and any `tokenizer.json`.

A tokenizer is read from, and written as, the files that plain `AutoTokenizer.from_pretrained` reads, so that a model
trained with it is used like any other.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"

_SAVED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
_GENERATION = "generation_config.json"
_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "attention_mask"],
}


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """Text to token ids.

    Attributes:
        name: what it was read from.
        eos_id: the token that ends a document; None if it has none.
        vocab_size: the largest token id, plus one.
        files: what `save` writes, by name.
    """

    name: str
    tokenizer: "Tokenizer"
    eos_id: int | None
    vocab_size: int
    files: Mapping[str, bytes]

    def encode(self, text: str) -> list[int]:
        """The ids that `transformers` gives for `text`: with the tokens that this tokenizer puts around every text
        (for some a first `<bos>`, for most none), and special tokens recognised where the text spells them."""
        # Of one text too: made for many, it keeps no places in the text, and leaves Python to other threads meanwhile.
        return self.tokenizer.encode_batch_fast([text])[0].ids

    def save(self, folder: Path) -> Path:
        """The folder, which `AutoTokenizer.from_pretrained` now loads. Effect: writes files, replacing old ones."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder


def byte_tokenizer() -> "Tokenizer":
    """Every byte is a token, whose id is the byte; id 256 is `END_OF_TEXT`. Any text comes back exactly.

    >>> byte_tokenizer().encode("é<|endoftext|>").ids
    [195, 169, 256]
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab={c: b for b, c in enumerate(_byte_characters())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def read_tokenizer(source: str) -> TextTokenizer:
    """The tokenizer that `source` names. Effect: reads files; a hub name may download them.

    Args:
        source: `bytes` for the built-in one, a folder with a `tokenizer.json`, or the name of a model on the hub.

    Raises:
        ValueError: if there is no such folder or model, or it has no `tokenizer.json`.
    """
    if source == "bytes":
        config = json.dumps({**_CONFIG, "eos_token": END_OF_TEXT}, indent=2)
        return _tokenizer(source, {_SAVED[0]: byte_tokenizer().to_str().encode(), _SAVED[1]: config.encode()})
    folder = Path(source).expanduser()
    if folder.is_dir():
        paths = {name: folder / name for name in (*_SAVED, _GENERATION) if (folder / name).is_file()}
    elif source.startswith(("/", ".", "~")) or source.count("/") > 1 or source.endswith("/"):
        raise ValueError(f"{source}: no such folder.")
    else:
        paths = _download(source)
    if _SAVED[0] not in paths:
        raise ValueError(
            f"{source}: no tokenizer.json. Name a folder that has one as tokenizer='...', or 'bytes'; of a tokenizer "
            "that transformers can read, AutoTokenizer.from_pretrained(name).save_pretrained(folder) writes one."
        )
    return _tokenizer(source, {name: path.read_bytes() for name, path in paths.items()})


def _tokenizer(source: str, files: Mapping[str, bytes]) -> TextTokenizer:
    """A tokenizer from the contents of its files."""
    from tokenizers import Tokenizer

    parsed = {name: _parse(source, name, files[name]) for name in files if name.endswith(".json")}
    tokenizer = Tokenizer.from_str(files[_SAVED[0]].decode())
    # Some files were saved with the limits of one use; a document is neither cut nor padded.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    eos_id = _find_eos(parsed, tokenizer)
    saved = {name: content for name, content in files.items() if name in _SAVED}
    if _SAVED[1] not in saved:
        eos = {} if eos_id is None else {"eos_token": tokenizer.id_to_token(eos_id)}
        saved[_SAVED[1]] = json.dumps(_CONFIG | eos, indent=2).encode()
    return TextTokenizer(source, tokenizer, eos_id, max(tokenizer.get_vocab().values()) + 1, saved)


def _parse(source: str, name: str, content: bytes) -> dict[str, Any]:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{source}: {name} is not JSON: {error}") from None


def _find_eos(parsed: Mapping[str, Mapping[str, Any]], tokenizer: "Tokenizer") -> int | None:
    """The end of a document, from the first file that tells."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = parsed.get(name, {}).get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and (eos_id := tokenizer.token_to_id(token)) is not None:
            return eos_id
    ids = parsed.get(_GENERATION, {}).get("eos_token_id")
    return ids[0] if isinstance(ids, list) else ids


def _download(name: str) -> dict[str, Path]:
    """Those tokenizer files that a model of the hub has. Effect: downloads them, unless they are cached."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    paths: dict[str, Path] = {}
    for file in (*_SAVED, _GENERATION):
        try:
            paths[file] = Path(hf_hub_download(name, file))
        except (OSError, EntryNotFoundError, HFValidationError) as error:
            reached = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
            # Optional files may be missing, also from a cache that is read offline.
            if reached or (file != _SAVED[0] and isinstance(error, LocalEntryNotFoundError)):
                continue
            raise ValueError(
                f"{name}: no such folder, and its tokenizer cannot be had from the hub: {error}\n"
                f"Where there is network, run `hf download {name}` first, or copy its tokenizer.json here and name the "
                "folder; a private or gated model needs `hf auth login`; `bytes` needs no download."
            ) from error
    return paths


def _byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: itself if it can be seen, else the next one
    from 256 on. This is the alphabet of GPT-2, which the `ByteLevel` parts of the tokenizers library build in."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    unseen = iter(range(0x100, 0x200))
    return [chr(byte if byte in seen else next(unseen)) for byte in range(256)]
