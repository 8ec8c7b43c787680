"""Images, films and sounds in rows of tokens: which tokens stand for them, how many there must be, and where they are.

A row holds, for every feature that a tower makes, one placeholder token. Which kind of medium a placeholder stands for
follows from its token id, so that a packed row needs nothing beside its tokens.

Dimensions: N tokens of a document, B rows, S tokens a row, P planes of positions.
"""

import inspect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

TEXT, IMAGE, VIDEO, AUDIO = 0, 1, 2, 3
"""The kinds of tokens."""

_NAMES: Final = {IMAGE: "image", VIDEO: "video", AUDIO: "audio"}
_GRIDS: Final = {IMAGE: "image_grid_thw", VIDEO: "video_grid_thw"}
_PIXELS: Final = {IMAGE: "pixel_values", VIDEO: "pixel_values_videos"}
_ARRAYS: Final = {**_PIXELS, AUDIO: "input_features"}
_HEARD: Final = "feature_attention_mask"
_SECONDS: Final = ("second_per_grid_ts", "video_second_per_grid")
_OWNERS: Final = {_GRIDS[IMAGE]: IMAGE, _GRIDS[VIDEO]: VIDEO, **dict.fromkeys(_SECONDS, VIDEO), _HEARD: AUDIO}
"""By argument of the model that its `get_rope_index` asks for: the kind of media that it has an entry for."""
_ASKED: Final = frozenset(
    {
        *("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts"),
        *("second_per_grids", "audio_seqlens", "use_audio_in_video", "kwargs"),
    }
)
"""What a `get_rope_index` may ask for, and is told here."""
_HALVED_TWICE: Final = ("qwen2_audio", "qwen2_5_omni_thinker")
"""Types whose tower hears through a convolution and a pooling, both of stride 2."""


def token_kinds(config: PreTrainedConfig, tokens_N: NDArray[np.integer]) -> NDArray[np.uint8]:
    """(N,): of each token of one document, whether it is text (0) or stands for an image (1), a film (2) or a sound
    (3). Pure.

    Where a model writes frames of films with the tokens of images (GLM-4V), those between the beginning and the end of
    a film are its.
    """
    kinds_N = np.zeros(len(tokens_N), np.uint8)
    for kind, name in _NAMES.items():
        if (token := _token(config, name)) is not None:
            kinds_N[tokens_N == token] = kind
    if writes_films_as_images(config):
        start, end = (getattr(config, f"video_{side}_token_id") for side in ("start", "end"))
        inside_N = np.cumsum(tokens_N == start) > np.cumsum(tokens_N == end)
        kinds_N[inside_N & (kinds_N == IMAGE)] = VIDEO
    return kinds_N


def writes_films_as_images(config: PreTrainedConfig) -> bool:
    """Whether frames of films stand in rows as images do, between a beginning and an end of their own. Pure."""
    return all(getattr(config, f"video_{side}_token_id", None) is not None for side in ("start", "end"))


def count_features(config: PreTrainedConfig, media: Mapping[str, Any]) -> dict[int, list[int]]:
    """By kind, how many features the tower makes of each medium, in order. Pure.

    Args:
        config: of the model.
        media: arguments of the model, as its processor gives them.

    Raises:
        ValueError: if that is not known of such a model.
    """
    counts: dict[int, list[int]] = {}
    for kind, name in _GRIDS.items():
        if name in media:
            area = _vision(config).spatial_merge_size ** 2
            counts[kind] = [int(size) // area for size in np.asarray(media[name]).prod(axis=-1)]
    pixels, each = media.get(_PIXELS[IMAGE]), _tile_features(config)
    if IMAGE not in counts and pixels is not None and pixels.ndim == 4 and each is not None:
        counts[IMAGE] = [each] * len(pixels)
    fixed = getattr(config, "media_features", {})
    counts |= {k: [fixed[n]] * len(media[_ARRAYS[k]]) for k, n in _NAMES.items() if n in fixed and _ARRAYS[k] in media}
    if AUDIO not in counts and _HEARD in media and config.model_type in _HALVED_TWICE:
        heard = np.asarray(media[_HEARD]).sum(axis=-1)
        counts[AUDIO] = [((int(frames) - 1) // 2 + 1 - 2) // 2 + 1 for frames in heard]
    known = {name for kind in counts for name in (_GRIDS.get(kind), _PIXELS.get(kind))}
    known |= {*_SECONDS, *((_HEARD, "input_features") if AUDIO in counts else ())}
    if unknown := sorted(set(media) - known):
        raise ValueError(
            f"{config.model_type}: how many features it makes of {', '.join(unknown)} is not known here, so nothing "
            "could tell a placeholder too many from the right number."
        )
    return counts


def media_problems(config: PreTrainedConfig, tokens_N: NDArray[np.integer], media: Mapping[str, Any]) -> list[str]:
    """Why the tokens of one document do not fit its media, in words; empty if they do. Pure.

    Raises:
        ValueError: as `count_features`.
    """
    counts, kinds_N = count_features(config, media), token_kinds(config, tokens_N)
    problems = []
    for kind, name in _NAMES.items():
        features = counts.get(kind, [])
        if (found := int((kinds_N == kind).sum())) != sum(features):
            problems.append(
                f"{found} tokens stand for {name}s, but the tower of {config.model_type} makes {sum(features)} "
                f"features of {len(features)} {name}(s) {features}: is the processor this model's, and does no text "
                "spell placeholders?"
            )
        grid, pixels = _GRIDS.get(kind, ""), _PIXELS.get(kind, "")
        patches = int(np.asarray(media[grid]).prod(axis=-1).sum()) if grid in media else 0
        if grid in media and pixels in media and len(media[pixels]) != patches:
            problems.append(f"{pixels} has {len(media[pixels])} patches where {grid} tells of {patches}.")
    return problems


def media_places(
    config: PreTrainedConfig, tokens_BS: Tensor, segments_BS: Tensor, media: Mapping[str, Any]
) -> dict[int, list[tuple[int, NDArray[np.int64]]]]:
    """By kind, for each medium in order: the row that it is in, and the places in it of its placeholders. Pure.

    Args:
        config: of the model.
        tokens_BS: on the host, as segments are.
        segments_BS: 1, 2, ... for the documents of a row, 0 for padding.
        media: of all documents, in the order of the rows.

    Raises:
        ValueError: if the placeholders of a document do not fit its media.
    """
    counted = count_features(config, media)
    features = {kind: counted.get(kind, []) for kind in _NAMES}
    first = dict.fromkeys(_NAMES, 0)
    found: dict[int, list[tuple[int, NDArray[np.int64]]]] = {kind: [] for kind in _NAMES}
    for row, span in _documents(segments_BS):
        kinds_N = token_kinds(config, tokens_BS[row, span].numpy())
        for kind in _NAMES:
            places = span.start + np.flatnonzero(kinds_N == kind)
            own = _take(features[kind], first[kind], len(places), row, kind)
            first[kind] = own.stop
            stops = np.cumsum(features[kind][own], dtype=np.int64)[:-1]
            found[kind] += [(row, part) for part in np.split(places, stops)] if own.stop > own.start else []
    _check_all_taken(features, first)
    return found


def media_positions(
    model: PreTrainedModel, tokens_BS: Tensor, segments_BS: Tensor, media: Mapping[str, Tensor]
) -> Tensor:
    """What to pass as `position_ids` of packed rows, int64: in every document what the model gives it alone. Pure.

    For models whose placeholders have time, height and width it is (4, B, S): first the place in the document, which
    tells documents apart, and then those three. For all others it is (B, S). Padding is at 0.

    Args:
        model: its own `get_rope_index` is asked, document by document; it may be on the meta device.
        tokens_BS: on the host, as what follows from them is.
        segments_BS: 1, 2, ... for the documents of a row, 0 for padding.
        media: of all documents in the order of the rows, as for `model(...)`.

    Raises:
        ValueError: if the placeholders of a document do not fit its media, or the model's positions depend on more.
    """
    part: Any = next((module for module in model.modules() if hasattr(module, "get_rope_index")), None)
    takes = frozenset(() if part is None else inspect.signature(part.get_rope_index).parameters)
    if more := sorted(takes - _ASKED):
        raise ValueError(f"{type(part).__name__} gives positions by {', '.join(more)} too, which is not built yet.")
    media = {name: array.cpu() for name, array in media.items()}
    counted = count_features(model.config, media)
    features = {kind: counted.get(kind, []) for kind in _NAMES}
    first = dict.fromkeys(_NAMES, 0)
    planes_PBS = tokens_BS.new_zeros(4, *tokens_BS.shape)
    for row, span in _documents(segments_BS):
        tokens_N = tokens_BS[row, span]
        planes_PBS[0, row, span] = torch.arange(len(tokens_N))
        kinds_N = token_kinds(model.config, tokens_N.numpy())
        own = {k: _take(features[k], first[k], int((kinds_N == k).sum()), row, k) for k in _NAMES}
        first = {k: taken.stop for k, taken in own.items()}
        if part is None:
            continue
        if "use_audio_in_video" in takes:
            _refuse_sounds_of_films(model.config, tokens_N, row)
        told = {name: media[name][own[k]] for name, k in _OWNERS.items() if name in media}
        told |= {"mm_token_type_ids": torch.from_numpy(kinds_N.astype(np.int64))[None]}
        told |= {"attention_mask": torch.ones_like(tokens_N)[None], "second_per_grids": told.get(_SECONDS[1])}
        told |= {"audio_seqlens": told[_HEARD].sum(-1) if _HEARD in told else None}
        told = {name: fact for name, fact in told.items() if name in takes and fact is not None}
        planes_PBS[1:, row, span] = part.get_rope_index(tokens_N[None], **told)[0][:, 0]
    _check_all_taken(features, first)
    return planes_PBS[0] if part is None else planes_PBS


def _refuse_sounds_of_films(config: PreTrainedConfig, tokens_N: Tensor, row: int) -> None:
    """Features of a film and of its sound would alternate in a row, and each medium be in many pieces."""
    starts = [_token(config, name) for name in ("vision_start", "audio_start")]
    if any(pair == tuple(starts) for pair in pairwise(tokens_N.tolist())):
        raise ValueError(
            f"row {row}: a film begins with its sound (use_audio_in_video), which is not built yet: give the sound as "
            "a medium of its own."
        )


def _check_all_taken(features: Mapping[int, Sequence[int]], first: Mapping[int, int]) -> None:
    if left := [f"{len(features[k]) - count} {_NAMES[k]}(s)" for k, count in first.items() if count < len(features[k])]:
        raise ValueError(f"no document has placeholders for {', '.join(left)} of the media given.")


def _take(features: Sequence[int], start: int, tokens: int, row: int, kind: int) -> slice:
    """The media from `start` on that make so many features together."""
    stop = start
    while tokens > 0 and stop < len(features):
        tokens -= features[stop]
        stop += 1
    if tokens:
        raise ValueError(
            f"row {row}: a document's {_NAMES[kind]} placeholders do not fit the features of its {_NAMES[kind]}s, "
            f"{list(features[start:stop])}."
        )
    return slice(start, stop)


def _documents(segments_BS: Tensor) -> list[tuple[int, slice]]:
    """Row and span of each document, in order."""
    found = []
    for row, segments_S in enumerate(segments_BS.cpu()):
        bounds = [0, *(segments_S.diff().nonzero().flatten() + 1).tolist(), len(segments_S)]
        spans = [slice(a, b) for a, b in pairwise(bounds) if b > a]
        found += [(row, span) for span in spans if segments_S[span.start] > 0]
    return found


def _token(config: PreTrainedConfig, name: str) -> int | None:
    """The placeholder of a kind of media, by either name that transformers has for it."""
    token = getattr(config, f"{name}_token_id", None)
    return getattr(config, f"{name}_token_index", None) if token is None else token


def _tile_features(config: PreTrainedConfig) -> int | None:
    """How many features a tower makes of an image, or a tile, of the one size that it sees."""
    names = ("mm_tokens_per_image", "image_seq_length")
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)


def _vision(config: PreTrainedConfig) -> Any:
    vision = getattr(config, "vision_config", None)
    if not hasattr(vision, "spatial_merge_size"):
        raise ValueError(f"{config.model_type} does not say how many patches make a feature (spatial_merge_size).")
    return vision
