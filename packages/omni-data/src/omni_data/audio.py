"""A sound to a wave at a given rate. The same bytes give equal arrays.

A sound is decoded in one piece: soundfile seeks after each piece that it reads, and after a seek decoders of MP3 lack
what they heard before. So there are limits to what a file may have beside its length.

Dimensions: T samples of the wave, N samples of the file, C channels.
"""

import numpy as np
from numpy.typing import NDArray

from omni_data.blob import Blob, decoding, open_blob, the_extra

_MOST_CHANNELS, _MOST_RATE = 16, 192_000
"""A second of as much as this takes 12 MB."""


def read_audio(source: Blob, *, rate: int, most_seconds: float) -> NDArray[np.float32]:
    """(T,) float32: the mean of all channels, within about -1 to 1, `rate` samples a second. Effect: reads `source`.

    Ogg, and MP3 without a Xing header, do not say how long they are: of such a file that was cut, what is left is read.

    Args:
        source: WAV, FLAC, Ogg, MP3 or another format of libsndfile: bytes, a path, or `{"bytes": ..., "path": ...}`.
        rate: samples a second; another rate of the file is converted by soxr (HQ).
        most_seconds: a longer sound is refused before it is decoded.

    Raises:
        ValueError: with the name of the file, if it is no sound, too long, empty, corrupt or truncated.
    """
    with the_extra():
        import soundfile
        import soxr
    with open_blob(source) as (file, name), decoding(name), soundfile.SoundFile(file) as sound:
        native, count = sound.samplerate, sound.frames
        if count / native > most_seconds:
            raise ValueError(
                f"{name}: {count / native:g} s are more than most_seconds={most_seconds:g}: cut the sound, or raise "
                "the limit."
            )
        if sound.channels > _MOST_CHANNELS or native > _MOST_RATE:
            raise ValueError(
                f"{name}: {sound.channels} channels at {native} samples a second are more than {_MOST_CHANNELS} at "
                f"{_MOST_RATE}."
            )
        if "should be" in sound.extra_info:
            # libsndfile reads what is left of a cut file, and only writes down that something is missing.
            raise ValueError(f"{name}: is truncated, or its header lies: {_complaint(sound.extra_info)}.")
        wave_NC = sound.read(dtype="float32", always_2d=True)
    if len(wave_NC) < count:
        raise ValueError(f"{name}: {len(wave_NC)} of {count} samples could be decoded: it is truncated.")
    if not count:
        raise ValueError(f"{name}: holds no sound at all.")
    wave_N = wave_NC.mean(axis=1)
    if not np.isfinite(wave_N).all():
        raise ValueError(f"{name}: holds values that are not finite.")
    return wave_N if native == rate else soxr.resample(wave_N, native, rate, quality="HQ")


def _complaint(log: str) -> str:
    """The first line of libsndfile's log that says what should be."""
    return next(" ".join(line.split()) for line in log.splitlines() if "should be" in line)
