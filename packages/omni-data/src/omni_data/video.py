"""Frames of a film, evenly chosen, as arrays of colours with their times. The same bytes give equal arrays.

A film is read twice: once without decoding, which tells when each frame is shown and whether what is asked for keeps
the limits, and once decoding on one thread. Only chosen frames become colours.

Dimensions: F chosen frames, of H rows of W pixels, 3 colours.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omni_data.blob import Blob, decoding, open_blob, the_extra

MOST_PIXELS = 1 << 28
"""Pixels of 512 frames of 720 x 720, which take 800 MB."""

# What a file names beside itself is never opened, and playlists, which do nothing else, are not read.
_OPEN = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif"}

_MOST_OF_A_FRAME = 1 << 26
"""Pixels that a decoder may set aside for a frame, whatever the file says while it is decoded."""


def pick_frames(count: int, frames_per_second: float | Fraction, *, fps: float, most: int) -> list[int]:
    """Which frames of a film are shown at 0, 1 / fps, 2 / fps ... seconds, or `most` of them, evenly spread. Pure.

    With a step of `frames_per_second / fps` frames, or of `count / most` where that is more, and at least one, chosen
    are frame 0 and then the one that is shown after each further step. So none is chosen twice, the first always is,
    and a film that is slower than `fps` is taken whole.

    >>> pick_frames(10, 4, fps=2, most=100), pick_frames(10, 4, fps=2, most=3), pick_frames(3, 1, fps=2, most=100)
    ([0, 2, 4, 6, 8], [0, 3, 6], [0, 1, 2])

    Args:
        count: how many frames the film has.
        frames_per_second: of the film.
        fps: frames to choose a second.
        most: frames to choose at most.

    Raises:
        ValueError: if one of them is not positive.
    """
    given = {"count": count, "frames_per_second": frames_per_second, "fps": fps, "most": most}
    if wrong := [f"{name}={float(value):g}" for name, value in given.items() if not value > 0]:
        raise ValueError(f"{', '.join(wrong)} must be positive to choose frames.")
    step = max(Fraction(frames_per_second) / Fraction(fps), Fraction(count, most), Fraction(1))
    return [int(k * step) for k in range(ceil(count / step))]


def read_video(
    source: Blob, *, fps: float, most_frames: int, most_pixels: int = MOST_PIXELS
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """(F, H, W, 3) uint8 and (F,) float64: the chosen frames of a film, turned as it says, and when each is shown, in
    seconds from the first. Effect: reads `source`.

    Args:
        source: MP4, MOV, WebM, Matroska, AVI, MPEG, FLV, Ogg or GIF: bytes, a path, or `{"bytes": ..., "path": ...}`.
        fps: frames a second to choose; see `pick_frames`.
        most_frames: frames to choose at most.
        most_pixels: of all chosen frames together; more are refused before any is decoded.

    Raises:
        ValueError: with the name of the file, and the frame if it is one, if it is no film, too large, or corrupt.
    """
    with the_extra():
        import av
    with open_blob(source) as (file, name), decoding(name):
        with av.open(file, options=_OPEN) as container:
            film = _look(container, name)
        chosen = pick_frames(len(film.stamps), film.rate, fps=fps, most=most_frames)
        if len(chosen) * film.width * film.height > most_pixels:
            raise ValueError(
                f"{name}: {len(chosen)} frames of {film.width} x {film.height} pixels are more than "
                f"most_pixels={most_pixels}: choose fewer (fps, most_frames), scale the film down, or raise the limit."
            )
        file.seek(0)
        with av.open(file, options=_OPEN) as container:
            frames = list(_decode(container, name, film, chosen))
        times_F = np.array([float((film.stamps[i] - film.stamps[0]) * film.tick) for i in chosen])
        return np.stack(frames), times_F


@dataclass(frozen=True, slots=True)
class _Film:
    """What is known of a film without decoding it.

    Attributes:
        stamps: when each frame is shown, in ticks, in order.
        tick: seconds.
        rate: frames a second.
        width, height: pixels, before it is turned.
        timed: whether frames keep their stamps when they are decoded.
    """

    stamps: list[int]
    tick: Fraction
    rate: Fraction
    width: int
    height: int
    timed: bool


def _look(container: Any, name: str) -> _Film:
    """What is known of the film without decoding it."""
    stream = container.streams.best("video")
    if stream is None:
        raise ValueError(f"{name}: holds no film.")
    stamps: set[int] = set()
    for number, packet in enumerate(container.demux(stream)):
        if packet.is_corrupt:
            raise ValueError(f"{name}: frame {number} is cut: the file is truncated.")
        if packet.size and not packet.is_discard:
            stamps.add(number if packet.pts is None else packet.pts)
    if not stamps:
        raise ValueError(f"{name}: holds a film without frames.")
    shown, tick = sorted(stamps), stream.time_base
    span = (shown[-1] - shown[0]) * tick
    rate = stream.average_rate or (Fraction(len(shown) - 1) / span if span else Fraction(1))
    context = stream.codec_context
    # AVI stamps its frames in the order of decoding.
    return _Film(shown, tick, rate, context.width, context.height, container.format.name != "avi")


def _decode(container: Any, name: str, film: _Film, chosen: list[int]) -> Iterator[NDArray[np.uint8]]:
    """The chosen frames, (H, W, 3)."""
    stream = container.streams.best("video")
    stream.codec_context.thread_count = 1
    # Without it, decoders fill in what they cannot read, and say nothing.
    stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(_MOST_OF_A_FRAME)}
    number_of = {stamp: number for number, stamp in enumerate(film.stamps)}
    left, decoded = chosen[::-1], enumerate(container.decode(stream))
    last = -1
    while left:
        with decoding(name, f"frame {last + 1}: "):
            order, frame = next(decoded, (0, None))
        last = -1 if frame is None else number_of.get(frame.pts, -1) if film.timed else order
        if frame is None or last > left[-1]:
            raise ValueError(f"{name}: frame {left[-1]}: cannot be decoded.")
        if last < left[-1]:
            continue
        if (frame.width, frame.height) != (film.width, film.height) or frame.is_corrupt:
            raise ValueError(
                f"{name}: frame {last}: is corrupt, or of {frame.width} x {frame.height} pixels where the film is of "
                f"{film.width} x {film.height}."
            )
        colours_HW3 = frame.to_ndarray(format="rgb24", threads=1)
        left.pop()
        yield np.rot90(colours_HW3, frame.rotation // 90)
