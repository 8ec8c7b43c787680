"""The media of packed rows, one by one: which rows of arrays are each one's, where its placeholders are, what it costs.

Ranks swap media, so each has to be known by itself. Some models write films with the tokens of images (GLM-4V), which
transformers takes for one or the other, all of a batch alike; here a frame of such a film is an image.

Dimensions: B rows, S tokens a row, F places of one medium.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig

from omni_models.media import AUDIO, IMAGE, VIDEO, media_places, writes_films_as_images

_NAMES: Final = {IMAGE: "image", VIDEO: "video", AUDIO: "audio"}
_ARRAYS: Final = {
    IMAGE: ("pixel_values", "image_grid_thw"),
    VIDEO: ("pixel_values_videos", "video_grid_thw"),
    AUDIO: ("input_features", "feature_attention_mask"),
}
"""Arguments of the model, by kind; others of media tell of positions alone."""
_PATCHES: Final = ("pixel_values", "pixel_values_videos")


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """The media of one kind, in the order of their tokens.

    Attributes:
        arrays: by argument of the model, their rows one medium after the other.
        rows: of each medium, how many rows of each array.
        places: of each medium, the row that it is in, and the places (F,) of its placeholders there, ascending.
        costs: of each medium, floating-point operations of a forward pass of its tower.
    """

    arrays: Mapping[str, Tensor]
    rows: Sequence[tuple[int, ...]]
    places: Sequence[tuple[int, NDArray[np.int64]]]
    costs: Sequence[float]

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        """Of each medium, frames, height and width in patches; nothing where arrays do not tell them of each alone."""
        grids = next((array.tolist() for name, array in self.arrays.items() if name.endswith("_grid_thw")), [])
        return [tuple(grid) for grid in grids] if len(grids) == len(self.rows) else [()] * len(self.rows)


def list_media(
    config: PreTrainedConfig, tokens_BS: Tensor, segments_BS: Tensor, media: Mapping[str, Tensor]
) -> dict[str, Shown]:
    """The media of packed rows by "image", "video" and "audio"; kinds that are not there are left out. Pure.

    Args:
        config: of the model.
        tokens_BS: on the host, as segments and media are.
        segments_BS: 1, 2, ... for the documents of a row, 0 for padding.
        media: of all documents, in the order of the rows, as for `model(...)`.

    Raises:
        ValueError: if the placeholders of a document do not fit its media.
    """
    placed = media_places(config, tokens_BS, segments_BS, media)
    found: dict[str, Shown] = {}
    for kind, name in _NAMES.items():
        if not placed[kind]:
            continue
        arrays = {each: media[each] for each in _ARRAYS[kind] if each in media}
        grids = _grids(media.get(_ARRAYS[kind][1]), kind)
        rows = [
            tuple(int(np.prod(grid)) if each in _PATCHES and grid is not None else 1 for each in arrays)
            for grid in grids or [None] * len(placed[kind])
        ]
        # Tiles of one size, and sounds, which are heard in windows, cost as much as they have features.
        lengths = [float(len(places)) for _, places in placed[kind]]
        costs = lengths if grids is None else [tower_flops(config, grid) for grid in grids]
        found[name] = Shown(arrays, rows, placed[kind], costs)
    if writes_films_as_images(config) and (films := found.pop("video", None)) is not None:
        found["image"] = _join_films(found.get("image"), films)
    return found


def tower_flops(config: PreTrainedConfig, grid: tuple[int, ...]) -> float:
    """Floating-point operations of a forward pass of the tower of images, for patches in `grid`: frames, height and
    width. Projections and attention, which is within a frame, or within windows of it. Pure."""
    vision: Any = config.vision_config  # pyright: ignore[reportAttributeAccessIssue]
    layers = getattr(vision, "depth", None) or vision.num_hidden_layers
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    inner = getattr(vision, "intermediate_size", None) or int(width * vision.mlp_ratio)
    frames, patches = grid[0], int(np.prod(grid[1:]))
    whole = getattr(vision, "fullatt_block_indexes", None)
    full = layers if whole is None else len(whole)
    window = min(patches, (vision.window_size // vision.patch_size) ** 2) if whole is not None else patches
    projections = layers * (8 * width**2 + 4 * width * inner * (1.5 if whole is not None else 1))
    return float(frames * patches * (projections + 4 * width * (full * patches + (layers - full) * window)))


def _grids(array: Tensor | None, kind: int) -> list[tuple[int, ...]] | None:
    return None if array is None or kind == AUDIO else [tuple(grid) for grid in array.tolist()]


def _join_films(images: Shown | None, films: Shown) -> Shown:
    """Images, and frames of films as images, in the order of their tokens."""
    pixels, grids = _ARRAYS[IMAGE]
    film_pixels, film_grids = (films.arrays[name] for name in _ARRAYS[VIDEO])
    frames = [(t, film_grids.new_tensor([[1, h, w]]).expand(t, 3)) for t, h, w in film_grids.tolist()]
    joined = [
        (place, cost, part, grid)
        for place, cost, part, (_, grid) in zip(
            films.places, films.costs, film_pixels.split([rows[0] for rows in films.rows]), frames, strict=True
        )
    ]
    if images is not None:
        parts = images.arrays[pixels].split([rows[0] for rows in images.rows])
        joined += zip(images.places, images.costs, parts, images.arrays[grids].split(1), strict=True)
    joined.sort(key=lambda each: (each[0][0], int(each[0][1][0])))
    places, costs, parts, own = zip(*joined, strict=True)
    arrays = {pixels: torch.cat(parts), grids: torch.cat(own)}
    return Shown(arrays, [(len(part), len(grid)) for part, grid in zip(parts, own, strict=True)], places, costs)
