"""Text of a composed model, token by token, and among it what decoders make: after the token that begins it, so many
outputs, each of which is read before the next is made.

Dimensions: N tokens of the row so far, V vocabulary, F outputs of a decoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from omni_models.decoders import choose
from omni_models.draws import keys_of
from omni_models.omni import OmniModel
from omni_models.parts import DecoderSpec, decoder_specs, encoder_specs


@dataclass(frozen=True, slots=True, eq=False)
class Generated:
    """A row that went on."""

    tokens_N: Tensor
    """int64, the prompt included."""
    outputs: Mapping[str, Tensor]
    """By decoder, those of its tokens in the row, (F, ...), the prompt's included."""


@torch.no_grad()
def generate(
    model: OmniModel,
    tokens_N: Tensor,
    most: int,
    *,
    media: Mapping[str, Tensor] = MappingProxyType({}),
    outputs: Mapping[str, Tensor] = MappingProxyType({}),
    eos_id: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    cache: bool = True,
) -> Generated:
    """The row of `tokens_N` and up to `most` tokens more.

    Placeholders and outputs are never chosen as text; which decoder's turn it is follows from the token before
    (`DecoderSpec.begin_id`), and outputs that have begun are brought to their end.

    Args:
        model: in evaluation mode, all of it on one rank or on the same calls of all.
        tokens_N: int64, at least one.
        most: tokens to add, outputs counted.
        media: by argument of the model, of the placeholders in the prompt.
        outputs: by decoder, what its tokens in the prompt stand for.
        eos_id: the token after which there is no more.
        temperature: 0 takes the likeliest; or what logits are divided by before one is drawn.
        seed: of what is drawn: it depends on this and the place in the row alone.
        cache: keep keys and values of the row, by transformers' cache. Without, all of it is computed anew for each
            token, which any attention can (`use_attention` has whole rows only).

    Raises:
        ValueError: if the prompt is empty, or as the model does.
    """
    if not len(tokens_N):
        raise ValueError("the prompt is empty: begin with a token.")
    specs = decoder_specs(model.config)
    row, kept = tokens_N, DynamicCache() if cache else None
    made = {name: outputs.get(name, _none(spec, row.device)) for name, spec in specs.items()}
    # What the model has not read yet: so many tokens, media, outputs.
    waiting, seen, new = len(row), media, made
    run, left = _begins(specs, int(row[-1]))
    while most > 0 or left > 0:
        key_1, value = _key(seed, len(row), row.device), None
        last = torch.tensor([waiting - 1], device=row.device)
        asked = {"decoder_samples": {run: (last, key_1, temperature)}} if left else {}
        out = model(**_told(row, waiting, kept), **seen, decoder_inputs=new, **asked)
        if left:
            value = out.samples[run].to(made[run].dtype)
            token, left = specs[run].token_id, left - 1
        else:
            token = int(choose(_text_alone(model, out.logits[:, -1]), key_1, temperature))
            run, left = _begins(specs, token)
        fresh = {name: each[:0] if value is None or name != run else value for name, each in made.items()}
        made = {name: torch.cat([each, fresh[name]]) for name, each in made.items()}
        row, most = torch.cat([row, row.new_tensor([token])]), most - 1
        waiting, seen, new = (len(row), media, made) if kept is None else (1, {}, fresh)
        if value is None and token == eos_id:
            break
    return Generated(row, made)


def _told(row_N: Tensor, fresh: int, kept: DynamicCache | None) -> dict[str, Any]:
    """The last `fresh` tokens of a row as arguments of the model."""
    first = len(row_N) - fresh
    told = {
        "input_ids": row_N[None, first:],
        "position_ids": torch.arange(first, len(row_N), device=row_N.device)[None],
    }
    return told | ({"use_cache": False} if kept is None else {"use_cache": True, "past_key_values": kept})


def _begins(specs: Mapping[str, DecoderSpec], token: int) -> tuple[str, int]:
    """Whose outputs begin after `token`, and how many there are; none is ("", 0)."""
    return next(((name, spec.count) for name, spec in specs.items() if spec.begin_id == token), ("", 0))


def _text_alone(model: OmniModel, logits_1V: Tensor) -> Tensor:
    specs = (*encoder_specs(model.config).values(), *decoder_specs(model.config).values())
    index = torch.tensor([spec.token_id for spec in specs], dtype=torch.int64, device=logits_1V.device)
    return logits_1V.float().index_fill(1, index, -torch.inf)


def _none(spec: DecoderSpec, device: torch.device) -> Tensor:
    return torch.zeros(0, *spec.shape, dtype=getattr(torch, spec.dtype), device=device)


def _key(seed: int, place: int, device: torch.device) -> Tensor:
    return torch.from_numpy(keys_of(seed, 0, np.zeros(1, np.int64), np.full(1, place))).to(device)
