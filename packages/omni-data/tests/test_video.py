"""Films to frames: which are chosen, when they are shown, and everything that is refused by name."""

from fractions import Fraction
from io import BytesIO
from math import floor

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_data import pick_frames, read_video

KINDS = [
    ("mp4", "libx264", {"g": "10", "bf": "2"}),
    ("mp4", "mpeg4", {}),
    ("mov", "mjpeg", {}),
    ("webm", "libvpx", {}),
    ("matroska", "libx264", {}),
    ("avi", "mpeg4", {}),
    ("avi", "libx264", {"bf": "2"}),
    ("mpegts", "libx264", {}),
    ("flv", "flv1", {}),
    ("gif", "gif", {}),
]
IDENTITY = (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def shade(i):
    return 20 + 7 * i


def film(kind="mp4", codec="libx264", options=None, *, count=30, rate=10, size=(64, 48), stamps=None, picture=None):
    """A film of grey frames, each lighter than the one before, or of one picture."""
    file = BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, options={"threads": "1", **(options or {})})
        stream.width, stream.height = size
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        for i in range(count):
            grey = np.full((size[1], size[0], 3), shade(i), np.uint8) if picture is None else picture
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            if stamps is not None:
                stream.codec_context.time_base = frame.time_base = Fraction(1, 1000)
                frame.pts = stamps[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def turned(data, matrix):
    """The film with another matrix in the header of its track."""
    words = [b"".join((v & 0xFFFFFFFF).to_bytes(4, "big") for v in m) for m in (IDENTITY, matrix)]
    at = data.index(words[0], data.index(b"tkhd"))
    return data[:at] + words[1] + data[at + 36 :]


def shades(frames_FHW3):
    """The number of each frame, by its shade."""
    return np.round((frames_FHW3.mean(axis=(1, 2, 3)) - 20) / 7).astype(int).tolist()


@given(st.integers(1, 500), st.fractions(Fraction(1, 10), 120), st.fractions(Fraction(1, 10), 60), st.integers(1, 64))
def test_chosen_frames_are_those_shown_at_even_times(count, rate, fps, most):
    chosen = pick_frames(count, rate, fps=fps, most=most)
    assert chosen[0] == 0 and 1 <= len(chosen) <= most and chosen[-1] < count
    assert chosen == sorted(set(chosen)) == pick_frames(count, rate, fps=fps, most=most)
    grid = [floor(k * rate / fps) for k in range(count) if k * rate / fps < count]
    if fps <= rate and len(grid) <= most:
        assert chosen == grid
    elif fps >= rate and count <= most:
        assert chosen == list(range(count))
    elif len(grid) > most and count >= most and fps <= rate:
        assert len(chosen) == most
    gaps = np.diff([*chosen, count])
    assert len(chosen) == 1 or gaps[:-1].max() - gaps[:-1].min() <= 1


def test_what_is_not_positive_is_refused_all_at_once():
    with pytest.raises(ValueError, match=r"^count=0, fps=-1 must be positive to choose frames.$"):
        pick_frames(0, 10, fps=-1, most=3)


@pytest.mark.parametrize(("kind", "codec", "options"), KINDS)
def test_frames_and_times_are_those_of_the_film(kind, codec, options, tmp_path):
    data = film(kind, codec, options)
    path = tmp_path / "a film"
    path.write_bytes(data)
    frames, times = read_video(data, fps=2, most_frames=100)
    assert frames.shape == (6, 48, 64, 3) and frames.dtype == np.uint8
    # Codecs change shades a little, and GIF has few of them.
    assert np.abs(np.subtract(shades(frames), [0, 5, 10, 15, 20, 25])).max() <= (3 if kind == "gif" else 1)
    assert np.allclose(times, np.arange(6) / 2, atol=1e-3) and times[0] == 0
    for source in (path, str(path), {"bytes": data, "path": None}):
        again, at = read_video(source, fps=2, most_frames=100)
        assert np.array_equal(again, frames) and np.array_equal(at, times)
    every, _ = read_video(data, fps=100, most_frames=100)
    assert len(every) == 30 and np.array_equal(every[::5], frames)
    few, times = read_video(data, fps=2, most_frames=3)
    assert np.array_equal(few, frames[::2]) and np.allclose(times, [0, 1, 2], atol=1e-3)


def test_times_are_those_of_the_frames_where_the_film_has_no_steady_rate():
    stamps = [0, 100, 150, 500, 900, 1000, 1700, 1900]
    data = film("matroska", count=8, stamps=stamps)
    frames, times = read_video(data, fps=100, most_frames=4)
    assert times.tolist() == [0, 0.15, 0.9, 1.7] and shades(frames) == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [
        ((0, 1 << 16, 0, -(1 << 16), 0, 0), -1),
        ((-(1 << 16), 0, 0, 0, -(1 << 16), 0), 2),
        ((0, -(1 << 16), 0, 1 << 16, 0, 0), 1),
    ],
)
def test_a_film_is_turned_as_it_says(matrix, turns):
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32] = 255  # Top left.
    data = film(picture=picture, count=3)
    straight, _ = read_video(data, fps=100, most_frames=9)
    got, _ = read_video(turned(data, (*matrix, 0, 0, 1 << 30)), fps=100, most_frames=9)
    assert np.array_equal(got, np.rot90(straight, turns, axes=(1, 2)))
    # A matrix (0, 1, -1, 0) maps x to y: the picture is turned clockwise, and its top left comes to the top right.
    corner = {-1: np.s_[:24, -24:], 2: np.s_[-24:, -24:], 1: np.s_[-24:, :24]}[turns]
    assert got[0][corner].mean() > 200


def test_limits_are_kept_before_anything_is_decoded():
    data = film()
    assert len(read_video(data, fps=2, most_frames=9, most_pixels=6 * 64 * 48)[0]) == 6
    broken = data.replace(data[data.index(b"mdat") + 4 : data.index(b"mdat") + 400], bytes(396))
    with pytest.raises(ValueError, match=r"a\.mp4: 6 frames of 64 x 48 pixels are more than most_pixels=18431: choose"):
        read_video({"bytes": broken, "path": "a.mp4"}, fps=2, most_frames=9, most_pixels=6 * 64 * 48 - 1)


@pytest.mark.parametrize(("kind", "codec", "options"), KINDS)
def test_a_film_that_is_cut_or_damaged_is_an_error_with_its_name_or_a_film(kind, codec, options):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    data = film(kind, codec, options, count=12, picture=noise)
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(20):
        bad = bytearray(data)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        for content in (bytes(bad), data[: rng.integers(len(data))]):
            try:
                frames, times = read_video(
                    {"bytes": content, "path": "bad.film"}, fps=100, most_frames=100, most_pixels=1 << 20
                )
            except ValueError as error:
                assert str(error).startswith("bad.film: "), error
                refused += 1
            else:
                assert len(frames) == len(times) and (np.diff(times) > 0).all()
    # Decoders of GIF take what they get.
    assert refused or kind == "gif"


def test_a_frame_that_cannot_be_decoded_is_named():
    data = bytearray(film("avi", "mjpeg", count=5))
    at = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xd8"][3]
    data[at : at + 200] = bytes(200)
    with pytest.raises(ValueError, match=r"a\.avi: frame 3: cannot be decoded"):
        read_video({"bytes": bytes(data), "path": "a.avi"}, fps=100, most_frames=100)
    assert len(read_video(bytes(data), fps=100, most_frames=2)[0]) == 2  # What is not needed does not matter.


def test_a_decoder_does_not_make_up_what_it_cannot_read():
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    data = bytearray(film("mov", "mjpeg", count=12, picture=noise))
    pictures = [i for i in range(len(data)) if data[i : i + 3] == b"\xff\xd8\xff"]
    at = (pictures[3] + pictures[4]) // 2
    data[at : at + 40] = b"\xff\xd9" * 20  # The picture ends in the middle.
    with pytest.raises(ValueError, match=r"bytes: frame 3: cannot be decoded"):
        read_video(bytes(data), fps=100, most_frames=100)


def test_a_film_that_is_cut_says_where():
    data = film("avi", "mjpeg", count=5)
    last = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xd8"][4]
    with pytest.raises(ValueError, match=r"bytes: frame 4 is cut: the file is truncated"):
        read_video(data[: last + 100], fps=100, most_frames=100)


def test_playlists_and_other_things_are_refused_by_name(tmp_path):
    (tmp_path / "inner.mp4").write_bytes(film())
    for text in ("#EXTM3U\n#EXTINF:3,\ninner.mp4\n", "ffconcat version 1.0\nfile inner.mp4\n", "no film"):
        path = tmp_path / "list"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"list: cannot be decoded: (ArgumentError|InvalidDataError)"):
            read_video(path, fps=1, most_frames=1)
    with pytest.raises(ValueError, match="nowhere: no such file"):
        read_video(tmp_path / "nowhere", fps=1, most_frames=1)
