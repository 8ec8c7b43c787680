"""From targets that come with rows to what each rank measures its decoders by. Pure: arrays in, arrays out.

A row holds a token for each output of a decoder, and what these stand for comes along, in the order of the tokens. The
hidden state before a token is to predict it, as in text; a rank that holds a slice of each row measures the targets
whose hidden states it has, and reads the outputs whose tokens it has.

Dimensions: B rows, S tokens a row, s = ceil(S / count) tokens of it on each of `count` ranks, V outputs of a decoder in
all rows, F of them that are measured here, G that are read here; N tokens of a sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from transformers.configuration_utils import PreTrainedConfig

from omni_models.draws import keys_of
from omni_models.media import media_problems
from omni_models.parts import ARGUMENTS, DecoderSpec, decoder_specs, encoder_specs, nearest

_SUFFIX: Final = "_targets"
"""How the names of arrays end that come with samples for a decoder: image_targets are those of the decoder image."""


@dataclass(frozen=True, slots=True, eq=False)
class Routed:
    """What a rank has of the outputs of one decoder.

    Attributes:
        inputs: (G, ...), what the tokens of its slices stand for, in their order.
        places_F: among the B * s hidden states of its slices, int64.
        targets: (F, ...).
        keys_F: what chance depends on, int64; the same on any mesh.
    """

    inputs: NDArray
    places_F: NDArray[np.int64]
    targets: NDArray
    keys_F: NDArray[np.int64]


def split_targets(
    config: PreTrainedConfig, arrays: Mapping[str, NDArray]
) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """The arrays of media, and by decoder those of its targets, which are called after it: `image_targets`.

    Raises:
        ValueError: if there is no decoder of a name.
    """
    media = {name: array for name, array in arrays.items() if not name.endswith(_SUFFIX)}
    targets = {name.removesuffix(_SUFFIX): array for name, array in arrays.items() if name.endswith(_SUFFIX)}
    if problems := [_unknown(name, config) for name in targets if name not in decoder_specs(config)]:
        raise ValueError("\n".join(problems))
    return media, targets


def is_text(config: PreTrainedConfig, tokens_N: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(N,): which tokens are text, and not placeholders or outputs of a decoder: what the loss of text may learn."""
    specs = (*encoder_specs(config).values(), *decoder_specs(config).values())
    return ~np.isin(tokens_N, [spec.token_id for spec in specs])


def sample_problems(
    config: PreTrainedConfig, tokens_N: NDArray[np.integer], arrays: Mapping[str, NDArray]
) -> list[str]:
    """Why a sample does not fit a composed model, in words; empty if it does.

    Args:
        config: of the model.
        tokens_N: of the sample.
        arrays: what it has beside tokens: media by argument of the model, targets as `split_targets` knows them.
    """
    encoders, decoders = encoder_specs(config), decoder_specs(config)
    problems = [
        f"it has {names[0]}, but the model has no encoder of {kind}s: add one, or leave such samples out."
        for kind, names in ARGUMENTS.items()
        if kind not in encoders and names[0] in arrays
    ]
    known = {name for kind in encoders for name in ARGUMENTS[kind]}
    problems += media_problems(config, tokens_N, {name: a for name, a in arrays.items() if name in known})
    targets = {name.removesuffix(_SUFFIX): a for name, a in arrays.items() if name.endswith(_SUFFIX)}
    problems += [_unknown(name, config) for name in targets if name not in decoders]
    for name, spec in decoders.items():
        problems += _count_problems(name, spec, int((tokens_N == spec.token_id).sum()), targets.get(name))
    return problems


def route_targets(
    config: PreTrainedConfig,
    tokens_BS: NDArray[np.int64],
    segments_BS: NDArray[np.int64],
    targets: Mapping[str, NDArray],
    *,
    index: int = 0,
    count: int = 1,
    learn_BS: NDArray[np.bool_] | None = None,
    rows_B: NDArray[np.int64] | None = None,
    seed: int = 0,
    step: int = 0,
) -> dict[str, Routed]:
    """By decoder, each one of the model, what this rank has of its outputs.

    Args:
        config: of the model.
        tokens_BS: whole rows, with a token for each output.
        segments_BS: 1, 2, ... for the documents of a row, 0 for padding.
        targets: by decoder, (V, ...), of all rows in their order; of one without tokens there may be none.
        index: which slice of the rows this rank has.
        count: of so many.
        learn_BS: which tokens are learnt; None for all. The first token of a document never is: nothing is before it.
        rows_B: which of the rows of all ranks these are; None for 0, 1, ...
        seed: of the run, for the keys.
        step: likewise.

    Raises:
        ValueError: if there are targets of an unknown decoder, or not as many as tokens, with the rows; all at once.
    """
    specs = decoder_specs(config)
    problems = [_unknown(name, config) for name in targets if name not in specs]
    for name, spec in specs.items():
        per_row = (tokens_BS == spec.token_id).sum(axis=1)
        found = _count_problems(name, spec, int(per_row.sum()), targets.get(name))
        rows = ", ".join(map(str, np.flatnonzero(per_row).tolist()[:8])) or "no row"
        problems += [f"{problem} Rows with its tokens: {rows}." for problem in found]
    if not 0 <= index < count:
        problems.append(f"index={index} is not a slice of count={count}: it goes from 0 to {count - 1}.")
    if problems:
        raise ValueError("these targets do not fit their rows:\n" + "\n".join(f"  - {p}" for p in problems))
    rows_B = np.arange(len(tokens_BS)) if rows_B is None else rows_B
    S = tokens_BS.shape[1]
    size = -(-S // count)
    routed = {}
    for name, spec in specs.items():
        # Where a row is lengthened to be cut, its last token is repeated, and what that stands for with it.
        is_BS = tokens_BS == spec.token_id
        row_V, place_V = np.nonzero(np.pad(is_BS, ((0, 0), (0, size * count - S)), mode="edge"))
        real_V, place_in_V = place_V < S, np.minimum(place_V, S - 1)
        values = targets.get(name)
        values = np.zeros((0, *spec.shape)) if values is None else values
        values = values.astype(spec.dtype, copy=False)[(is_BS.cumsum() - 1).reshape(is_BS.shape)[row_V, place_in_V]]
        before_V = np.maximum(place_in_V - 1, 0)
        measured_V = real_V & (place_V > 0) & (segments_BS[row_V, place_in_V] > 0)
        measured_V &= segments_BS[row_V, before_V] == segments_BS[row_V, place_in_V]
        measured_V &= before_V // size == index
        if learn_BS is not None:
            measured_V &= learn_BS[row_V, place_in_V]
        row_F, place_F = row_V[measured_V], before_V[measured_V]
        keys_F = keys_of(seed, step, rows_B[row_F].astype(np.int64), place_F.astype(np.int64))
        places_F = (row_F * size + place_F % size).astype(np.int64)
        routed[name] = Routed(values[place_V // size == index], places_F, values[measured_V], keys_F)
    return routed


def _count_problems(name: str, spec: DecoderSpec, tokens: int, values: Any) -> list[str]:
    """Why the targets of a decoder are not those of so many tokens."""
    if values is None:
        if not tokens:
            return []
        return [f"{tokens} tokens stand for outputs of {name}, but there are no {name}{_SUFFIX}: give one for each."]
    problems = []
    if len(values) != tokens:
        problems.append(
            f"{tokens} tokens stand for outputs of {name}, but {name}{_SUFFIX} are {len(values)}: give one for each."
        )
    if tuple(values.shape[1:]) != spec.shape:
        problems.append(
            f"{name}{_SUFFIX} are of shape {list(values.shape[1:])} each, the decoder's of {list(spec.shape)}."
        )
    return problems


def _unknown(name: str, config: PreTrainedConfig) -> str:
    specs = decoder_specs(config)
    return (
        f"there are targets of {name!r}, but no decoder of that name{nearest(name, specs)}; there are "
        f"{', '.join(specs) or 'none'}."
    )
