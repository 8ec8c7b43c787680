"""Sounds to waves: rates, channels and lengths, and everything that is refused by name."""

from io import BytesIO

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from omni_data import read_audio

KINDS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_24"),
]


def tone(seconds, rate, pitch=440.0):
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)


def encoded(wave, rate, kind="WAV", subtype="PCM_16"):
    file = BytesIO()
    soundfile.write(file, wave, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
def test_every_format_is_the_sound_that_was_written(kind, subtype, tmp_path):
    wave = tone(0.5, 16_000)
    data = encoded(wave, 16_000, kind, subtype)
    got = read_audio(data, rate=16_000, most_seconds=1)
    assert got.dtype == np.float32 and got.ndim == 1
    assert np.abs(got - soundfile.read(BytesIO(data), dtype="float32")[0]).max() < 1e-6
    assert np.abs(got[: len(wave)] - wave).mean() < 0.02
    path = tmp_path / "a.sound"
    path.write_bytes(data)
    for source in (path, str(path), {"bytes": data, "path": None}, {"bytes": None, "path": str(path)}):
        assert np.array_equal(read_audio(source, rate=16_000, most_seconds=1), got)


@pytest.mark.parametrize("native", [8_000, 22_050, 44_100, 48_000])
def test_a_sound_of_another_rate_is_the_same_sound(native):
    data = encoded(tone(2.3, native), native)
    got = read_audio(data, rate=16_000, most_seconds=3)
    assert abs(len(got) - 2.3 * 16_000) <= 1
    assert np.abs(got - tone(2.3, 16_000)[: len(got)])[200:-200].max() < 1e-3
    assert np.array_equal(got, read_audio(data, rate=16_000, most_seconds=3))


def test_a_long_mp3_is_decoded_in_one_piece():
    data = encoded(tone(20, 16_000), 16_000, "MP3", "MPEG_LAYER_III")
    got = read_audio(data, rate=16_000, most_seconds=21)
    # Between the ends it is a tone without a click: as loud everywhere.
    loud = np.abs(got[1_000:-1_000].reshape(-1, 100)).max(axis=1)
    assert loud.max() - loud.min() < 0.05


def test_channels_are_mixed_evenly():
    left, right = tone(0.1, 8_000), tone(0.1, 8_000, 600)
    data = encoded(np.stack([left, right], 1), 8_000, subtype="FLOAT")
    assert np.allclose(read_audio(data, rate=8_000, most_seconds=1), (left + right) / 2, atol=1e-6)
    with pytest.raises(ValueError, match=r"17 channels at 8000 samples a second are more than 16 at 192000"):
        read_audio(encoded(np.zeros((9, 17)), 8_000), rate=8_000, most_seconds=1)


def test_a_sound_of_the_limit_is_read_and_a_longer_one_refused_by_its_header():
    data = encoded(np.zeros(8_001), 8_000, "FLAC")
    assert len(read_audio(data, rate=4_000, most_seconds=8_001 / 8_000)) == 4_001
    noise = encoded(np.random.default_rng(0).uniform(-1, 1, 8_001), 8_000, "FLAC")
    cut = {"bytes": noise[: len(noise) // 2], "path": "a.flac"}  # It cannot be decoded, only its header be read.
    with pytest.raises(ValueError, match=r"^a.flac: 1.00012 s are more than most_seconds=1: cut the sound"):
        read_audio(cut, rate=4_000, most_seconds=1)


@pytest.mark.parametrize(("kind", "subtype"), [k for k in KINDS if k[0] != "OGG"])
def test_a_sound_that_is_cut_is_an_error_with_its_name(kind, subtype):
    data = encoded(np.random.default_rng(0).uniform(-1, 1, 48_000), 16_000, kind, subtype)
    for size in (len(data) // 2, len(data) * 9 // 10, 10, 0):
        with pytest.raises(ValueError, match=r"^cut\.sound: "):
            read_audio({"bytes": data[:size], "path": "cut.sound"}, rate=16_000, most_seconds=9)


@given(st.sampled_from(KINDS), st.data())
def test_damaged_bytes_are_a_sound_or_an_error_with_the_name(kind, data):
    good = bytearray(encoded(tone(0.05, 8_000), 8_000, *kind))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    source = {"bytes": bytes(good), "path": "bad.sound"}
    try:
        got = read_audio(source, rate=16_000, most_seconds=1)
    except ValueError as error:
        assert str(error).startswith("bad.sound: ")
    else:
        assert np.isfinite(got).all() and np.array_equal(got, read_audio(source, rate=16_000, most_seconds=1))


def test_what_is_no_sound_is_refused_by_name(tmp_path):
    for wave, problem in (([np.nan] * 9, "are not finite"), ([np.inf] * 9, "are not finite"), ([], "holds no sound")):
        with pytest.raises(ValueError, match=problem):
            read_audio(encoded(np.array(wave), 8_000, subtype="FLOAT"), rate=8_000, most_seconds=1)
    with pytest.raises(ValueError, match="8 bytes: cannot be decoded: LibsndfileError"):
        read_audio(b"no sound", rate=8_000, most_seconds=1)
    with pytest.raises(ValueError, match="nowhere: no such file"):
        read_audio(tmp_path / "nowhere", rate=8_000, most_seconds=1)
